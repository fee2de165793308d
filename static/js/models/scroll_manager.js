// Keeps the end of the page in view, but only for a reader who is already there.

const NEAR = 48; // pixels from the end that still count as the end

export class ScrollManager {
  #view;

  /** `view` has scrollTop, scrollHeight and clientHeight, like document.scrollingElement. */
  constructor(view) {
    this.#view = view;
  }

  get isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#view;
    return scrollHeight - clientHeight - scrollTop <= NEAR;
  }

  /** Change the page with `render`, and scroll to its end if it was there before (or always). */
  follow(render, { always = false } = {}) {
    const stay = always || this.isAtEnd;
    render();
    if (stay) this.toEnd();
  }

  /** Change the page above the visible part with `render`, without moving that part. */
  keepPosition(render) {
    const before = this.#view.scrollHeight - this.#view.scrollTop;
    render();
    this.#view.scrollTop = this.#view.scrollHeight - before;
  }

  toEnd() {
    this.#view.scrollTop = this.#view.scrollHeight;
  }
}
