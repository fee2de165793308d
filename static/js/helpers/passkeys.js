// WebAuthn with options and answers in JSON. Written out, since Safari before 18.4 has no parseCreationOptionsFromJSON.

/** Whether the browser has passkeys on this page: only with https, or on localhost. */
export function hasPasskeys() {
  return window.PublicKeyCredential !== undefined && navigator.credentials !== undefined;
}

/** Make a passkey by the options of the server; resolves to the answer as an object for JSON. */
export async function createPasskey({ publicKey }) {
  const credential = await navigator.credentials.create({
    publicKey: {
      ...publicKey,
      challenge: decoded(publicKey.challenge),
      user: { ...publicKey.user, id: decoded(publicKey.user.id) },
      excludeCredentials: decodedIds(publicKey.excludeCredentials),
    },
  });
  const { response } = credential;
  return answer(credential, {
    clientDataJSON: encoded(response.clientDataJSON),
    attestationObject: encoded(response.attestationObject),
    transports: response.getTransports?.() ?? [],
  });
}

/** Ask for a passkey by the options of the server; resolves to the answer as an object for JSON. */
export async function usePasskey({ publicKey }) {
  const credential = await navigator.credentials.get({
    publicKey: {
      ...publicKey,
      challenge: decoded(publicKey.challenge),
      allowCredentials: decodedIds(publicKey.allowCredentials),
    },
  });
  const { response } = credential;
  return answer(credential, {
    clientDataJSON: encoded(response.clientDataJSON),
    authenticatorData: encoded(response.authenticatorData),
    signature: encoded(response.signature),
    userHandle: response.userHandle === null ? null : encoded(response.userHandle),
  });
}

function answer(credential, response) {
  return {
    type: credential.type,
    id: credential.id,
    rawId: encoded(credential.rawId),
    authenticatorAttachment: credential.authenticatorAttachment,
    response,
    clientExtensionResults: credential.getClientExtensionResults(),
  };
}

function decodedIds(credentials) {
  return (credentials ?? []).map((one) => ({ ...one, id: decoded(one.id) }));
}

/** The bytes of a text in base64url. */
export function decoded(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
}

/** Bytes as text in base64url, without padding. */
export function encoded(buffer) {
  const text = String.fromCharCode(...new Uint8Array(buffer));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
