// The words of scripts in the page's language. A page in another language than English loads its catalogue
// before the modules: static/catalogs/, which `make messages` writes from chatproject/locale/.

const { language, plural, messages } = globalThis.catalog ?? { language: "en", plural: (n) => Number(n !== 1), messages: {} };

// Arabic pages have the digits 0 to 9, on the server as well.
export const locale = language === "ar" ? "ar-u-nu-latn" : language;

/** The language of the page: a code such as "de". */
export { language };

/** A text in the page's language; `values` replace the names in braces: `gettext("Reply to {name}", {name})`. */
export function gettext(text, values = {}) {
  return filled(found(text) ?? text, values);
}

/** A text with a count. Numbers are written as the language does. */
export function ngettext(one, many, count, values = {}) {
  const text = found(one)?.[plural(count)] ?? (count === 1 ? one : many);
  return filled(text, { count, ...values });
}

/** A number as people write it, with so many decimals. */
export function number(value, decimals = 0) {
  const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return value.toLocaleString(locale, { useGrouping: "always", ...digits });
}

function found(text) {
  return Object.hasOwn(messages, text) ? messages[text] : undefined;
}

function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    if (!Object.hasOwn(values, name)) return whole;
    return typeof values[name] === "number" ? number(values[name]) : values[name];
  });
}
