import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import vm from "node:vm";

const source = await readFile(new URL("../../templates/service_worker.js", import.meta.url), "utf8");
const CHAT = "/c/1/";
const SIGNED_IN = { ok: true, redirected: false, json: async () => ({ key: "site", token: "t" }) };
const MESSAGE = { title: "Parley", body: "Your reply is ready.", url: CHAT, tag: "1" };

/**
 * The worker in a browser with these windows; `send` fires an event and waits for its end. `answer` is that of the site
 * to the first request for a renewal.
 */
function worker(windows = [], answer = { ok: false }) {
  const listeners = {};
  const done = [];
  const pages = windows.map(([path, visibilityState]) => ({
    url: `https://chat.example.org${path}`,
    visibilityState,
    focus: async () => done.push(["focus", path]),
  }));
  const self = {
    addEventListener: (type, listener) => (listeners[type] = listener),
    clients: { matchAll: async () => pages, openWindow: async (url) => done.push(["open", url]) },
    registration: {
      showNotification: async (title, options) => done.push(["show", title, options]),
      pushManager: {
        subscribe: async (options) => {
          done.push(["subscribe", options]);
          return subscription("made");
        },
      },
    },
  };
  const fetch = async (url, { method = "GET", body }) => {
    done.push([method, url, ...(body === undefined ? [] : [Object.fromEntries(body)])]);
    return answer;
  };
  const CONFIG = { isOn: true, release: "1", page: "/offline/", renewal: "/renew/", files: [], icon: "/icon", badge: "/badge" };
  vm.runInNewContext(source, { self, CONFIG, URL, URLSearchParams, fetch });
  const send = async (type, event) => {
    const ends = [];
    listeners[type]({ ...event, waitUntil: (end) => ends.push(end) });
    await Promise.all(ends);
    return JSON.parse(JSON.stringify(done));
  };
  return { push: () => send("push", { data: { json: () => MESSAGE } }), send };
}

test("a message is shown unless its chat is visible", async () => {
  const shown = ["show", "Parley", { body: MESSAGE.body, tag: "1", icon: "/icon", badge: "/badge", data: { url: CHAT } }];
  assert.deepEqual(await worker().push(), [shown]);
  assert.deepEqual(await worker([[CHAT, "hidden"], ["/", "visible"]]).push(), [shown]);
  assert.deepEqual(await worker([[CHAT, "visible"]]).push(), []);
});

test("a click opens the chat, in its window if there is one", async () => {
  const click = { notification: { close() {}, data: { url: CHAT } } };
  assert.deepEqual(await worker([["/", "visible"]]).send("notificationclick", click), [["open", CHAT]]);
  assert.deepEqual(await worker([[CHAT, "hidden"]]).send("notificationclick", click), [["focus", CHAT]]);
});

const subscription = (name) => ({
  endpoint: `https://push.example/${name}`,
  toJSON: () => ({ endpoint: `https://push.example/${name}`, keys: { p256dh: `key of ${name}`, auth: `secret of ${name}` } }),
});

/** The request that adds a subscription in place of the one with the endpoint `old`. */
const added = (name, old) => {
  const endpoint = `https://push.example/${name}`;
  const keys = { p256dh: `key of ${name}`, auth: `secret of ${name}` };
  return ["POST", "/renew/", { endpoint, ...keys, old, csrfmiddlewaretoken: "t" }];
};

test("an ended subscription is replaced at the site, whichever the browser names", async () => {
  const old = subscription("old");
  const asked = ["GET", "/renew/"];
  const subscribed = ["subscribe", { userVisibleOnly: true, applicationServerKey: "site" }];
  const change = (event, answer = SIGNED_IN) => worker([], answer).send("pushsubscriptionchange", event);
  assert.deepEqual(await change({ oldSubscription: old }), [asked, subscribed, added("made", old.endpoint)]);
  assert.deepEqual(await change({ oldSubscription: null, newSubscription: null }), [asked, subscribed, added("made", "")]);
  const made = { oldSubscription: old, newSubscription: subscription("new") };
  assert.deepEqual(await change(made), [asked, added("new", old.endpoint)]);
  assert.deepEqual(await change(made, { ...SIGNED_IN, redirected: true }), [asked]);
  assert.deepEqual(await change(made, { ...SIGNED_IN, ok: false }), [asked]);
});
