// Markdown in a model's reasoning: what a single line has, so that it is formatted while it streams in.

const LONGEST = 5_000; // characters of a line that is formatted
const FENCE = /^\s*(```|~~~)/;
const BLOCK = /^(\s*)(?:#{1,6}|([-*+]))\s+(.*)$/s;
const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/g;

/** Format the lines of a finished reasoning: a text, or a block for each line. Formatted lines stay. */
export function formatThoughts(element) {
  if (element.children.length === 0) {
    const lines = element.textContent.split("\n");
    element.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
  }
  let isCode = false;
  for (const line of element.children) isCode = formatLine(line, isCode);
}

/** Format a block with one line, which ends no longer; return whether the next line is code. */
export function formatLine(line, isCode) {
  const { textContent: text, dataset } = line;
  if (dataset.thought === undefined) {
    if (FENCE.test(text)) dataset.thought = "fence";
    else if (isCode) dataset.thought = "code";
    else if (text.length <= LONGEST) dataset.thought = formatted(line, text);
    else dataset.thought = "";
  }
  return dataset.thought === "fence" ? !isCode : isCode;
}

function formatted(line, text) {
  const [, indent, bullet, rest] = BLOCK.exec(text) ?? [];
  if (rest === undefined) {
    line.replaceChildren(...inline(text));
    return "";
  }
  line.replaceChildren(...inline(rest));
  if (bullet === undefined) return "heading";
  line.style.setProperty("--depth", Math.min(4, Math.floor(indent.length / 2)));
  return "item";
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const { 0: whole, 1: code, 2: strong, 3: emphasis, index } of text.matchAll(INLINE)) {
    parts.push(text.slice(end, index));
    const element = document.createElement(code ? "code" : strong ? "strong" : "em");
    element.textContent = code ?? strong ?? emphasis;
    parts.push(element);
    end = index + whole.length;
  }
  return [...parts, text.slice(end)];
}
