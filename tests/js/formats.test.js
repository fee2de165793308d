import assert from "node:assert/strict";
import { test } from "node:test";

import { fileName, toCSV, toMarkdown } from "../../static/js/helpers/formats.js";

test("code gets a file name by its language or its caption", () => {
  assert.equal(fileName("python"), "code.py");
  assert.equal(fileName("C++"), "code.cpp");
  assert.equal(fileName(""), "code.txt");
  assert.equal(fileName("what is this"), "code.txt");
  assert.equal(fileName("python title=\"src/app.py\""), "app.py");
  assert.equal(fileName("js:lib/x.test.js"), "x.test.js");
  assert.equal(fileName("docker-compose.yml"), "docker-compose.yml");
  assert.equal(fileName("python ../../.bashrc.py"), "bashrc.py");
  assert.equal(fileName("constructor"), "code.txt");
});

test("a table is copied as CSV that runs no formula", () => {
  assert.equal(toCSV([["a", "b, c"], ['say "x"', "-3.5"]]), 'a,"b, c"\r\n"say ""x""",-3.5');
  assert.equal(toCSV([["=1+1", "@x", "+1", "-cmd|x", "-"]]), "'=1+1,'@x,'+1,'-cmd|x,'-");
});

test("a table is copied as Markdown", () => {
  assert.equal(toMarkdown([["a", "b|c"], ["1", ""]]), "| a | b\\|c |\n| --- | --- |\n| 1 |  |");
});
