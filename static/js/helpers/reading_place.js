// The line that a reader looks at, found again when streamed Markdown has become HTML. The marks of Markdown
// go, so a place is a number of letters and digits before it, and the next ones as a sample.

const SAMPLE = 24;

/** The place of the first character of `root` below `top`, in pixels of the window; null without one. */
export function placeBelow(root, top) {
  let before = "";
  const nodes = textNodes(root);
  for (const [index, node] of nodes.entries()) {
    if (boxOf(node, 0, node.length).bottom <= top) {
      before += node.data;
      continue;
    }
    const offset = firstBelow(node, top);
    const after = node.data.slice(offset) + nodes.slice(index + 1).map(({ data }) => data).join("");
    return {
      count: letters(before + node.data.slice(0, offset)).length,
      sample: letters(after.slice(0, 10 * SAMPLE)).slice(0, SAMPLE),
      y: boxOf(node, offset, offset + 1).top,
    };
  }
  return null;
}

/** How far a place has moved down in another element with the same words; 0 if it is not found. */
export function movementOf(place, root) {
  const nodes = textNodes(root);
  const words = nodes.map(({ data }) => letters(data));
  const at = nearest(words.join(""), place);
  if (at === null) return 0;
  let left = at;
  const index = words.findIndex((word) => {
    if (left < word.length) return true;
    left -= word.length;
    return false;
  });
  const offset = offsetOf(nodes[index].data, left);
  return boxOf(nodes[index], offset, offset + 1).top - place.y;
}

function textNodes(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) if (walker.currentNode.length > 0) nodes.push(walker.currentNode);
  return nodes;
}

function boxOf(node, start, end) {
  const range = document.createRange();
  range.setStart(node, start);
  range.setEnd(node, end);
  return range.getBoundingClientRect();
}

/** The first character of a text whose line ends below `top`, by binary search. */
function firstBelow(node, top) {
  let low = 0;
  let high = node.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (boxOf(node, middle, middle + 1).bottom > top) high = middle;
    else low = middle + 1;
  }
  return low;
}

function letters(text) {
  const withoutAddresses = text.replace(/\]\([^)\s]*\)/g, "]");
  return withoutAddresses.replace(/[^\p{L}\p{N}]/gu, "");
}

/** The index of the place's sample that is nearest to its count; null without one. */
function nearest(words, { count, sample }) {
  if (sample === "") return null;
  let found = null;
  for (let at = words.indexOf(sample); at !== -1; at = words.indexOf(sample, at + 1)) {
    if (found === null || Math.abs(at - count) < Math.abs(found - count)) found = at;
  }
  return found;
}

/** The offset of a letter of a text: `index` counts letters and digits alone. */
function offsetOf(text, index) {
  let left = index;
  for (let offset = 0; offset < text.length; offset += 1) {
    const character = String.fromCodePoint(text.codePointAt(offset));
    const size = letters(character).length;
    if (size > left) return offset;
    left -= size;
    offset += character.length - 1;
  }
  return 0;
}
