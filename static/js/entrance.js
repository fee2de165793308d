// Entry point of the pages with one card: sign-in, account, errors.

import { CopyField } from "./elements/copy_field.js";
import { PasskeyForm } from "./elements/passkey_form.js";
import { PasswordField } from "./elements/password_field.js";
import { WaitLink } from "./elements/wait_link.js";
import { keepServiceWorker } from "./helpers/service_worker.js";

keepServiceWorker().catch((error) => console.warn("no service worker:", error));
customElements.define("copy-field", CopyField);
customElements.define("passkey-form", PasskeyForm);
customElements.define("password-field", PasswordField);
customElements.define("wait-link", WaitLink);
