"use strict";
// The page of `metier serve`. It talks to the server that it came from and to nobody else. Text is only ever set as text.

const $ = (id) => document.getElementById(id);
const state = { turns: [], running: null, token: sessionStorage.getItem("token") || "", timer: null };

const headers = () => ({ "Content-Type": "application/json", ...(state.token ? { Authorization: `Bearer ${state.token}` } : {}) });

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (response.status === 401) { showDoor(); throw new Error("the token is missing or wrong"); }
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

function make(tag, text, properties = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  return Object.assign(node, properties);
}

// --- views -------------------------------------------------------------------------------------------------------------

function show(view) {
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== view;
  for (const button of document.querySelectorAll("nav button")) button.setAttribute("aria-pressed", button.dataset.view === view);
  clearInterval(state.timer);
  if (view === "runs") fillRuns().catch(fail);
  if (view === "progress") { fillProgress().catch(fail); state.timer = setInterval(() => fillProgress().catch(fail), 2000); }
}

function showDoor() {
  for (const section of document.querySelectorAll(".view")) section.hidden = true;
  $("door").hidden = false;
  $("token").focus();
}

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

// --- chat --------------------------------------------------------------------------------------------------------------

async function start() {
  const { data } = await get("/v1/models");
  $("door").hidden = true;
  show("chat");
  for (const select of [$("model"), $("beside")]) {
    for (const option of [...select.options]) if (option.value) option.remove();
    for (const model of data) select.append(make("option", model.id, { value: model.id }));
  }
  await fillExamples();
}

async function fillExamples() {
  const { questions } = await get(`/page-data/examples?model=${encodeURIComponent($("model").value)}`);
  $("examples").replaceChildren(...questions.map((text) => {
    const button = make("button", text, { type: "button" });
    button.addEventListener("click", () => { $("question").value = text; $("question").focus(); });
    return button;
  }));
}

function chosen() {
  const names = [$("model").value, $("beside").value];
  return names.filter((name, i) => name && names.indexOf(name) === i);
}

function messages(name, question) {
  const found = $("system").value.trim() ? [{ role: "system", content: $("system").value.trim() }] : [];
  for (const turn of state.turns) {
    const answer = turn.answers.find((one) => one.model === name);
    if (answer && answer.text) found.push({ role: "user", content: turn.question }, { role: "assistant", content: answer.text });
  }
  return [...found, { role: "user", content: question }];
}

async function ask(question) {
  $("error").hidden = true;
  const names = chosen();
  const turn = { question, answers: names.map((model) => ({ model, text: "", seconds: 0 })) };
  const bodies = names.map((name) => ({
    model: name, messages: messages(name, question), stream: true, stream_options: { include_usage: true },
    temperature: Number($("temperature").value), max_tokens: Number($("longest").value) || 256,
  }));
  state.turns.push(turn);
  state.running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  $("examples").hidden = true;
  const places = drawTurn(turn);
  await Promise.all(bodies.map((body, i) => stream(body, turn.answers[i], places[i], state.running.signal)));
  state.running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  $("export").disabled = $("clear").disabled = false;
  $("said").textContent = turn.answers.map((one) => `${one.model}: ${one.text}`).join(" ");
  $("question").focus();
}

function drawTurn(turn) {
  const box = make("article", undefined, { className: "turn" });
  box.append(make("p", turn.question, { className: "asked" }));
  const grid = make("div", undefined, { className: "answers" });
  const places = turn.answers.map((answer) => {
    const place = make("div", undefined, { className: "answer writing" });
    place.append(make("h2", answer.model), make("p", ""), make("p", "", { className: "cost" }));
    place.children[2].className = "cost";
    grid.append(place);
    return place;
  });
  box.append(grid);
  $("log").append(box);
  $("log").scrollTop = $("log").scrollHeight;
  return places;
}

async function stream(body, answer, place, signal) {
  const [, text, cost] = place.children;
  const begun = performance.now();
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
    if (response.status === 401) showDoor();
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
      const delta = chunk.choices.length ? chunk.choices[0].delta.content : "";
      if (!delta) continue;
      answer.text += delta;
      text.textContent = answer.text;
      const log = $("log");
      if (log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
    }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else { answer.failed = error.message; place.append(make("p", error.message, { className: "failed" })); fail(error); }
  }
  answer.seconds = (performance.now() - begun) / 1000;
  place.classList.remove("writing");
  const parts = [`${answer.seconds.toFixed(1)} s`];
  if (answer.tokens) parts.push(`${answer.tokens} tokens`);
  if (answer.stopped) parts.push("stopped");
  cost.textContent = parts.join(", ");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function exported() {
  const lines = ["# Conversation", ""];
  for (const turn of state.turns) {
    lines.push(`## ${turn.question}`, "");
    for (const answer of turn.answers) lines.push(`**${answer.model}** (${answer.seconds.toFixed(1)} s)`, "", answer.text || "(no answer)", "");
  }
  return lines.join("\n");
}

function download() {
  const link = make("a", "", { href: URL.createObjectURL(new Blob([exported()], { type: "text/markdown" })), download: "conversation.md" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- runs and progress -------------------------------------------------------------------------------------------------

async function fillRuns() {
  const { runs } = await get("/page-data/runs");
  $("runs-none").hidden = runs.length > 0;
  $("runs-list").replaceChildren(...await Promise.all(runs.map(drawRun)));
}

async function drawRun(run) {
  const box = make("article", undefined, { className: "run" });
  box.append(make("h2", run.name), make("p", new Date(run.time * 1000).toLocaleString(), { className: "quiet" }));
  const open = make("button", "Open the report", { type: "button" });
  open.setAttribute("aria-label", `Open the report of ${run.name}`);
  open.addEventListener("click", () => openReport(run.name).catch(fail));
  box.append(open);
  if (run.leaderboard) {
    const board = await get(`/page-data/runs/${encodeURIComponent(run.name)}/leaderboard`);
    box.append(drawBoard(board));
  }
  return box;
}

async function openReport(name) {
  const path = `/page-data/runs/${encodeURIComponent(name)}/report`;
  if (!state.token) { window.open(path, "_blank", "noopener"); return; }
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  const link = make("a", "", { href: URL.createObjectURL(await response.blob()), download: `${name}-report.html` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function drawBoard(board) {
  const { metric, group } = board.ranked_by || {};
  const table = make("table");
  table.append(make("caption", metric ? `Leaderboard, ${metric}` : "Leaderboard", { className: "away" }));
  const head = make("tr");
  for (const [name, kind] of [["", "number"], ["contender", ""], [metric || "score", "number"], ["95 % interval", "number"], ["n", "number"]]) head.append(make("th", name, { scope: "col", className: kind }));
  table.append(head);
  for (const row of board.contenders || []) {
    const score = (row.scores || []).find((one) => one.metric === metric && one.group === group) || {};
    const interval = score.low == null ? "" : `${score.low.toFixed(3)} to ${score.high.toFixed(3)}`;
    const line = make("tr");
    line.append(make("td", row.rank ?? "", { className: "number" }), make("td", row.name), make("td", score.mean == null ? "" : score.mean.toFixed(3), { className: "number" }),
      make("td", interval, { className: "number" }), make("td", score.n ?? "", { className: "number" }));
    table.append(line);
  }
  const scroll = make("div", undefined, { className: "scroll" });
  scroll.append(table);
  return scroll;
}

async function fillProgress() {
  const { steps } = await get("/page-data/progress");
  $("progress-none").hidden = steps.length > 0;
  $("progress-list").replaceChildren(...steps.map(drawStep));
}

function drawStep(step) {
  const box = make("article", undefined, { className: "run" });
  const amount = step.total ? `${step.done} of ${step.total} ${step.unit}` : `${step.done ?? ""} ${step.unit}`;
  const speed = step.tokens_per_second ? `, ${Math.round(step.tokens_per_second)} tokens/s` : "";
  box.append(make("h2", step.step), make("p", `${step.task}: ${amount}${speed} (${Math.round(step.seconds_ago)} s ago)`, { className: "quiet" }));
  if (step.total) {
    const bar = make("progress", "", { max: step.total, value: step.done });
    bar.setAttribute("aria-label", `${step.step}: ${amount}`);
    box.append(bar);
  }
  if (step.loss.length > 1) box.append(drawCurve(step.loss), make("p", `loss ${step.loss.at(-1)[1].toFixed(3)} at step ${step.loss.at(-1)[0]}`, { className: "quiet" }));
  return box;
}

function drawCurve(points) {
  const spaces = "http://www.w3.org/2000/svg";
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const scale = (v, all) => (v - Math.min(...all)) / (Math.max(...all) - Math.min(...all) || 1);
  const svg = document.createElementNS(spaces, "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Loss from ${ys[0].toFixed(3)} to ${ys.at(-1).toFixed(3)}`);
  const line = document.createElementNS(spaces, "polyline");
  line.setAttribute("points", points.map(([x, y]) => `${(100 * scale(x, xs)).toFixed(2)},${(95 - 90 * scale(y, ys)).toFixed(2)}`).join(" "));
  svg.append(line);
  return svg;
}

// --- wiring ------------------------------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => show(button.dataset.view));
$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  sessionStorage.setItem("token", state.token);
  started = start().catch(fail);
});
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  await started;
  const question = $("question").value.trim();
  if (!question || state.running || !chosen().length) return;  // without a model the question stays where it is
  $("question").value = "";
  ask(question).catch(fail);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.running) state.running.abort(); });
$("stop").addEventListener("click", () => state.running && state.running.abort());
$("clear").addEventListener("click", () => {
  state.turns = [];
  $("log").replaceChildren();
  $("examples").hidden = false;
  $("export").disabled = $("clear").disabled = true;
  $("question").focus();
});
$("export").addEventListener("click", download);
$("model").addEventListener("change", () => fillExamples().catch(fail));
$("temperature").addEventListener("input", () => { $("temperature-shown").textContent = $("temperature").value; });
let started = start().catch((error) => { if ($("door").hidden) fail(error); });
