// Keeps the end of the page in sight, but only for who is there already.

const NEAR = 48; // pixels from the end that still count as being there

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

  /** Change the page with `render`, and stay at its end if it was there before (or always). */
  follow(render, { always = false } = {}) {
    const stay = always || this.isAtEnd;
    render();
    if (stay) this.toEnd();
  }

  /** Put something above what is seen, without moving that. */
  hold(render) {
    const before = this.#view.scrollHeight - this.#view.scrollTop;
    render();
    this.#view.scrollTop = this.#view.scrollHeight - before;
  }

  toEnd() {
    this.#view.scrollTop = this.#view.scrollHeight;
  }
}
