// One upload of a file, with its progress. XMLHttpRequest, as fetch reports no progress of a request.

export class Upload {
  #request = new XMLHttpRequest();

  /** Send a file to `url`; `progress` is called with the part that was sent, from 0 to 1. */
  constructor(url, { file, name, token, progress }) {
    const request = this.#request;
    this.done = new Promise((resolve) => {
      request.addEventListener("loadend", () => resolve(answerOf(request)));
    });
    request.upload.addEventListener("progress", ({ lengthComputable, loaded, total }) => {
      if (lengthComputable) progress(loaded / total);
    });
    request.open("POST", url);
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("X-CSRFToken", token);
    const form = new FormData();
    form.append("file", file, name);
    request.send(form);
  }

  cancel() {
    this.#request.abort();
  }
}

/** The answer to an upload: {stored} with the fields of the attachment, or {message}, null without an answer. */
export function answerOf({ status, responseText }) {
  let body = null;
  try {
    body = JSON.parse(responseText);
  } catch {
    // No JSON: a proxy refused the request, or there is no answer at all.
  }
  if (status === 201 && body !== null) return { stored: body };
  return { message: body?.message ?? null, status };
}
