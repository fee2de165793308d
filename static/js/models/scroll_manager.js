// Keeps the end of the page in view while the reader follows it. Following is a state of its own: it ends
// with any movement up, and begins again only at the end. A distance from the end would not do, since
// the next words of a reply would undo every step up that is smaller than it.

const AT_END = 1; // pixels; positions can be fractions, heights are rounded
const NEAR = 48; // pixels from the end that need no button to go there

export class ScrollManager {
  #view;
  #top; // the position when it was last read or set
  #isFollowing;

  /** `view` has scrollTop, scrollHeight and clientHeight, like document.scrollingElement. */
  constructor(view) {
    this.#view = view;
    this.#top = view.scrollTop;
    this.#isFollowing = this.isAtEnd;
  }

  get isAtEnd() {
    return this.#left <= AT_END;
  }

  get isNearEnd() {
    return this.#left <= NEAR;
  }

  get isFollowing() {
    return this.#isFollowing;
  }

  /** Read the position: call it for each scroll event. */
  moved() {
    const { scrollTop } = this.#view;
    const distance = scrollTop - this.#top;
    this.#top = scrollTop;
    // A page that becomes shorter moves a reader at its end up, and leaves that reader at the end.
    if (distance < 0 && !this.isAtEnd) this.stop();
    else if (distance > 0 && this.isAtEnd) this.#isFollowing = true;
  }

  /** The reader begins to move up, or would if the page were longer: stop before it has moved. */
  stop() {
    this.#isFollowing = false;
  }

  /** The reader moves down, perhaps at the end, where the page cannot move. */
  down() {
    if (this.isAtEnd) this.#isFollowing = true;
  }

  /** Change the page with `render`, and scroll to its end if the reader follows it (or always). */
  follow(render, { always = false } = {}) {
    this.moved(); // a scroll event may still be due
    render();
    if (always || this.#isFollowing) this.toEnd();
  }

  /** Follow a text that has moved down by so many pixels. */
  shift(distance) {
    this.#view.scrollTop += distance;
    this.#top = this.#view.scrollTop;
  }

  /** The window or the composer changed its height. */
  resized() {
    this.follow(() => {});
  }

  /** Change the page above the visible part with `render`, without moving that part. */
  keepPosition(render) {
    const before = this.#view.scrollHeight - this.#view.scrollTop;
    render();
    this.#view.scrollTop = this.#view.scrollHeight - before;
    this.#top = this.#view.scrollTop;
  }

  /** Scroll to the end and follow it. */
  toEnd() {
    this.#isFollowing = true;
    this.#view.scrollTop = this.#view.scrollHeight;
    this.#top = this.#view.scrollTop;
  }

  get #left() {
    const { scrollTop, scrollHeight, clientHeight } = this.#view;
    return scrollHeight - clientHeight - scrollTop;
  }
}
