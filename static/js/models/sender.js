// Sends what the user writes and asks for, as frames that are kept until the server has accepted them. Without
// a connection the browser submits the forms.

import { newClientId } from "../helpers/ids.js";
import { Draft } from "./draft.js";
import { Outbox } from "./outbox.js";

const MAX_FRAME_BYTES = 64 * 1024; // the server closes the socket on a larger frame

export class Sender {
  #app;
  #outbox;
  #stopping = new Set(); // ids of the runs that the user asked to stop
  #refusedKeys = new Map(); // of frames about replies: the client_id of one that was refused

  /** `app` is the ChatApp. */
  constructor(app) {
    this.#app = app;
    this.#outbox = new Outbox(app.storage);
  }

  start() {
    this.#app.addEventListener("chat:send", (event) => this.#send(event));
    this.#app.addEventListener("chat:other-model", (event) => {
      this.#again(event, "run.regenerate", event.detail.message, { model: event.detail.model });
    });
    this.#app.addEventListener("submit", (event) => this.#submitted(event));
  }

  /** Show the frames of the present page that are not accepted yet. */
  restore() {
    for (const frame of this.#outbox.removeExpired()) this.#returnToDraft(frame);
    for (const frame of this.#outbox.pending()) {
      if (this.isOfPage(frame)) this.#showSending(frame);
    }
  }

  /** Whether a frame with this client_id waits for its answer. */
  isPending(clientId) {
    return this.#outbox.pending().some((frame) => frame.client_id === clientId);
  }

  get hasPending() {
    return this.#outbox.pending().length > 0;
  }

  /** Whether a frame sends a message in the chat that is shown. */
  isOfPage(frame) {
    return isMessage(frame) && (frame.conversation ?? "") === this.#app.transcript?.conversation;
  }

  /** The socket is open: send all frames again that have no answer. */
  resend() {
    for (const frame of this.#outbox.pending()) if (!isUnnamed(frame)) this.#app.connection.send(frame);
  }

  /** Ask again to stop the runs that the user asked to stop. */
  resendStops() {
    for (const run of this.#stopping) this.#app.connection.send({ type: "run.stop", run });
  }

  /**
   * The server has accepted a frame about a conversation: remove and return it; undefined if it is of another tab.
   * The messages that were written after the first one of a new chat now have their conversation.
   */
  accepted(clientId, conversation) {
    const frame = this.#outbox.remove(clientId);
    if (frame !== undefined && isMessage(frame) && !frame.conversation) {
      for (const next of this.#outbox.pending().filter(isUnnamed)) {
        this.#outbox.replace({ ...next, conversation });
        this.#app.connection.send({ ...next, conversation });
      }
    }
    return frame;
  }

  /** A reply is being generated: send the message when it has ended, if it is one of this tab. */
  queueInstead(clientId) {
    const frame = this.#outbox.pending().find((one) => one.client_id === clientId);
    if (frame?.type !== "chat.send" || !frame.conversation) return false;
    const { assistant, parent, ...fields } = frame;
    const next = { ...fields, type: "next.queue" };
    this.#outbox.replace(next);
    if (this.isOfPage(next)) {
      this.#app.transcript.unsend(clientId);
      this.#showSending(next);
    }
    this.#app.connection.send(next);
    return true;
  }

  /** The server has refused a frame: return it, after its text is back where it was typed. */
  refused(clientId) {
    const frame = this.#outbox.remove(clientId);
    if (frame === undefined) return undefined;
    this.#returnToDraft(frame);
    if (isMessage(frame) && !frame.conversation) {
      for (const next of this.#outbox.pending().filter(isUnnamed)) this.refused(next.client_id);
    }
    return frame;
  }

  /** The server has refused to stop a run; whether the user had asked for it. */
  stopRefused(run) {
    return this.#stopping.delete(run);
  }

  /** No run of the page is active any longer. */
  forgetStops() {
    this.#stopping.clear();
  }

  /** Return the texts of all frames, as the server closes the socket because of one of them. */
  returnAll() {
    for (const { client_id: clientId } of this.#outbox.pending()) this.refused(clientId);
  }

  /** Submit the pending message as a form, since no socket can be opened at all. */
  postPending() {
    const { composer } = this.#app;
    for (const frame of this.#outbox.pending()) {
      if (composer === null || frame.models || !this.isOfPage(frame)) continue;
      this.#outbox.remove(frame.client_id);
      composer.post(frame.text, frame.client_id, frame.attachments);
      return;
    }
  }

  keepForNewChat(text) {
    const draft = new Draft(this.#app.storage, "new");
    draft.text = [draft.text, text].filter((part) => part.trim()).join("\n\n");
  }

  // --- Internal

  #send(event) {
    const { text, clientId, edit, models, choice, assistant, draft, files = [] } = event.detail;
    const { transcript, composer } = this.#app;
    const conversation = transcript.conversation || null;
    const isNext = !models && this.#isNext;
    const frame = edit
      ? { type: "message.edit", client_id: clientId, message: edit, text, ...choice, attachments: files }
      : {
          type: models ? "chat.compare" : isNext ? "next.queue" : "chat.send",
          client_id: clientId,
          conversation,
          text,
          ...(conversation || isNext ? {} : { project: transcript.dataset.project, assistant, temporary: composer?.temporary }),
          ...(models ? { models } : choice),
          ...(draft ? { draft } : {}),
          ...(files.length > 0 && { attachments: files }),
        };
    if (!this.#dispatch(frame)) return; // the browser submits the form
    event.preventDefault();
    if (edit) return; // the text stays in the composer until the server has accepted it
    this.#showSending(frame);
    this.#app.removeGreeting();
    composer.clear();
  }

  /** Whether a message of this page waits for a reply: one is being generated, or the chat is being begun. */
  get #isNext() {
    const isBeginning = !this.#app.transcript.conversation && this.#outbox.pending().some((one) => this.isOfPage(one));
    return isBeginning || (this.#app.composer?.isBusy ?? false);
  }

  #showSending(frame) {
    const { transcript, composer } = this.#app;
    if (frame.type !== "next.queue") transcript.showSending(frame);
    else composer?.next.showSending(frame);
  }

  /** Send a frame that must arrive, now or as soon as the connection is open. */
  #dispatch(frame) {
    const { connection } = this.#app;
    if (!connection.isUsable) return false;
    if (new TextEncoder().encode(JSON.stringify(frame)).length > MAX_FRAME_BYTES) return false;
    this.#outbox.put(frame);
    if (!isUnnamed(frame) && !connection.send(frame)) connection.wake();
    return true;
  }

  /** Forms whose button names the action. */
  #submitted(event) {
    const button = event.submitter;
    if (event.target.id === "models") this.#askForModel(event, button);
    else if (button?.dataset.regenerate) this.#again(event, "run.regenerate", button.dataset.regenerate);
    else if (button?.dataset.continue) this.#again(event, "run.continue", button.dataset.continue);
    else if (button?.name === "branch") this.#chooseBranch(event, button);
    else if (button?.dataset.stop) this.#stop(event, button);
    else if (button?.dataset.decide) this.#decide(event, button);
    else if (event.target.matches("[data-prompts]")) this.#prompt(event, button.value);
  }

  /** Ask for another reply, or for the rest of one. */
  #again(event, type, message, fields = {}) {
    // Refused by mistake (see ChatComposer.refused), it has been accepted: the same key has one effect.
    const key = fields.model === undefined ? `${type} ${message}` : null;
    const clientId = this.#refusedKeys.get(key) ?? newClientId();
    const frame = { type, client_id: clientId, message, ...fields };
    if (!this.#dispatch(frame)) return;
    this.#refusedKeys.delete(`${type} ${message}`);
    event.preventDefault();
    this.#app.composer.showError("");
  }

  /** Let the user choose the model of another reply; without the list the browser opens the page of all models. */
  #askForModel(event, button) {
    const models = this.#app.composer?.models;
    if (!models || !this.#app.connection.isUsable) return;
    event.preventDefault();
    models.askFor(button.value);
  }

  /** Ask for the branch of a message; the answer is `branch.selected`. */
  #chooseBranch(event, button) {
    const { transcript, connection } = this.#app;
    if (transcript.isPast) return; // the browser opens the whole page
    if (transcript.isChoosing(button.value)) event.preventDefault();
    else if (connection.send({ type: "branch.select", message: button.value })) {
      transcript.choose(button);
      event.preventDefault();
    }
  }

  /** Stop the run of a compared reply, or all runs of the chat. */
  #stop(event, button) {
    const { transcript, composer, connection } = this.#app;
    const isOfAll = composer?.contains(button) ?? false;
    const all = transcript.cursors.map(({ run }) => run);
    for (const run of isOfAll && all.length > 0 ? all : [button.dataset.stop]) {
      this.#stopping.add(run);
      if (connection.send({ type: "run.stop", run })) continue;
      if (!connection.wasOpen) return;
      connection.wake(); // `resendStops` sends it
    }
    event.preventDefault();
    button.disabled = true;
  }

  /** Allow or refuse a call of a tool; without a connection the browser sends the form. */
  #decide(event, button) {
    const { decide: run, call } = button.dataset;
    const frame = { type: "tool.decide", run, call, allow: button.value === "1" };
    if (!this.#app.connection.send(frame)) return;
    event.preventDefault();
    for (const one of button.parentElement.querySelectorAll("button")) one.disabled = true;
  }

  #prompt(event, text) {
    const { models, assistant } = this.#app.composer ?? {};
    const detail = { text, clientId: newClientId(), choice: models?.changes ?? {}, assistant };
    const send = new CustomEvent("chat:send", { detail, bubbles: true, cancelable: true });
    if (!this.#app.dispatchEvent(send)) event.preventDefault();
  }

  /** Put the text of a frame that was not accepted back where it was typed. */
  #returnToDraft(frame) {
    const { transcript, composer, storage } = this.#app;
    if (frame.type === "run.regenerate" || frame.type === "run.continue") {
      if (frame.model === undefined) this.#refusedKeys.set(`${frame.type} ${frame.message}`, frame.client_id);
    } else if (frame.type === "message.edit") {
      new Draft(storage, `edit:${frame.message}`).text = frame.text;
      if (composer?.dataset.edit === frame.message) composer.refused(frame);
    } else if (this.isOfPage(frame)) {
      transcript.unsend(frame.client_id);
      composer?.next.unsend(frame.client_id);
      if (composer === null) this.keepForNewChat(frame.text);
      else {
        composer.refused(frame);
        composer.restore(frame.text, frame.attachments);
      }
    } else if (isMessage(frame)) {
      new Draft(storage, frame.conversation ?? "new").text = frame.text;
    }
  }
}

/** Whether a frame sends a new message, to one model or to several. */
function isMessage({ type }) {
  return type === "chat.send" || type === "chat.compare" || type === "next.queue";
}

/** Whether a message waits for the conversation that the message before it begins. */
function isUnnamed({ type, conversation }) {
  return type === "next.queue" && !conversation;
}
