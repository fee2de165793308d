// Texts in the formats of other programs: tables as CSV and Markdown, and the names of files with code.

const EXTENSIONS = {
  bash: "sh", c: "c", "c#": "cs", "c++": "cpp", cpp: "cpp", cs: "cs", csharp: "cs", css: "css", dart: "dart", diff: "diff", docker: "dockerfile",
  go: "go", haskell: "hs", html: "html", ini: "ini", java: "java", javascript: "js", js: "js", json: "json", jsx: "jsx", julia: "jl",
  kotlin: "kt", latex: "tex", lua: "lua", markdown: "md", md: "md", php: "php", powershell: "ps1", py: "py", python: "py", r: "r", rb: "rb",
  rs: "rs", ruby: "rb", rust: "rs", scala: "scala", sh: "sh", shell: "sh", sql: "sql", svg: "svg", swift: "swift", toml: "toml", ts: "ts",
  tsx: "tsx", typescript: "ts", xml: "xml", yaml: "yaml", yml: "yaml",
};

/** The name of a file for code. `caption` is what follows the fence: a language, perhaps with a file's name. */
export function fileName(caption) {
  const [language = "", ...rest] = caption.trim().split(/[\s:,]+/);
  const named = rest.map((word) => word.replace(/^\w+=/, "").replace(/["'{}()]/g, "")).find((word) => /\w\.\w+$/.test(word));
  const own = /^[\w-]+(\.[\w-]+)+$/.test(language) ? language : undefined;
  const name = (named ?? own)?.split(/[\\/]/).at(-1).replace(/[^\p{L}\p{N}._-]/gu, "").replace(/^\.+/, "");
  const known = Object.hasOwn(EXTENSIONS, language.toLowerCase());
  return name || `code.${known ? EXTENSIONS[language.toLowerCase()] : "txt"}`;
}

/** Rows of texts as CSV (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe. */
export function toCSV(rows) {
  return rows.map((row) => row.map(csvField).join(",")).join("\r\n");
}

function csvField(text) {
  const safe = /^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Rows of texts as a table in Markdown, the first one as its head. */
export function toMarkdown([head, ...rows]) {
  const line = (cells) => `| ${cells.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}
