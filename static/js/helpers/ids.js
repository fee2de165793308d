/** A new idempotency key for a request of this page. (crypto.randomUUID exists only under TLS.) */
export function newClientId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Placeholder in the addresses of a page that was rendered before its conversation had an id. */
export const NO_ID = "00000000-0000-0000-0000-000000000000";
