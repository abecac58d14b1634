// Filters the list of answers as the address says (a bin of a diagram links to one), and moves the
// cursor of the training curves.
// Whatever comes from the run is written with textContent: it is never read as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE_SIZE = 25;
  document.documentElement.classList.add("scripted");

  function element(name, kind, text) {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(value, digits = 2) {
    return value.toFixed(digits).replace("-", "−");
  }

  // Training curves

  function startCurves() {
    const slider = $("step");
    if (!slider) return;
    const figures = [...document.querySelectorAll("figure[data-curve]")];
    slider.max = data.steps.length - 1;
    slider.value = slider.max;
    const first = data.steps[0];
    const span = Math.max(data.steps.at(-1), first + 1) - first;

    function moveTo(index) {
      slider.value = index;
      const step = data.steps[index];
      $("step-shown").textContent = step;
      slider.setAttribute("aria-valuetext", `step ${step}`);
      for (const figure of figures) {
        const value = data.curves[figure.dataset.curve][index];
        figure.querySelector("output").textContent =
          value === null ? "–" : String(Number(value.toPrecision(3))).replace("-", "−");
        figure.style.setProperty("--at", (step - first) / span);
      }
    }

    function nearest(step) {
      let best = 0;
      data.steps.forEach((s, i) => {
        if (Math.abs(s - step) < Math.abs(data.steps[best] - step)) best = i;
      });
      return best;
    }

    for (const figure of figures) {
      const chart = figure.querySelector(".chart");
      const style = getComputedStyle(chart);
      const [left, width] = ["--left", "--width"].map((n) => Number(style.getPropertyValue(n)));
      chart.addEventListener("pointermove", (event) => {
        const box = chart.getBoundingClientRect();
        const at = ((event.clientX - box.left) / box.width - left) / width;
        moveTo(nearest(first + at * span));
      });
    }
    slider.addEventListener("input", () => moveTo(Number(slider.value)));
    moveTo(data.steps.length - 1);
  }

  // Answers

  const ORDERS = {
    over: (a) => gap(a),
    under: (a) => (gap(a) === null ? null : -gap(a)),
    gap: (a) => (gap(a) === null ? null : Math.abs(gap(a))),
    high: (a) => a.confidence,
    low: (a) => (a.confidence === null ? null : -a.confidence),
    file: () => 0,
  };
  let found = [];
  let shown = 0;
  let defaults;

  function gap(answer) {
    const known = answer.confidence !== null && answer.informativeness !== null;
    return known ? answer.confidence - answer.informativeness : null;
  }

  function percent(answer) {
    return answer.confidence === null ? null : Math.round(100 * answer.confidence);
  }

  function grade(answer) {
    if (answer.informativeness === null) return "none";
    return answer.informativeness >= 0.5 ? "right" : "wrong";
  }

  // "after greedy" is the measurement "after" in the mode "greedy".
  function measurement(view) {
    const [, when, mode] = view.match(/^(.*?) ?(\w+)$/);
    return { when, mode };
  }

  function label(view) {
    const { when, mode } = measurement(view);
    if (!when) return "rollouts of training";
    return `${when === "warm start" ? "after the warm start" : `${when} training`}, ${mode}`;
  }

  function ofView(item, view) {
    return item.answers.filter((answer) => answer.view === view);
  }

  function settings() {
    const low = Number($("low").value);
    const high = Number($("high").value);
    return {
      view: $("view").value,
      order: ORDERS[$("order").value],
      grade: $("grade").value,
      change: $("change").value,
      kind: $("kind").value,
      family: $("family").value,
      layer: $("layer").value,
      words: $("words").value.trim().toLowerCase(),
      low: Math.min(low, high),
      high: Math.max(low, high),
    };
  }

  function change(item, mode) {
    const [before, after] = ["before", "after"].map((when) => ofView(item, `${when} ${mode}`)[0]);
    if (!before || !after) return "";
    return grade(before) === grade(after) ? "same" : grade(after);
  }

  function asked(item, wanted) {
    if (ofView(item, wanted.view).length === 0) return false;
    const mode = measurement(wanted.view).mode;
    if (wanted.change && change(item, mode) !== wanted.change) return false;
    return ["kind", "family", "layer"].every(
      (name) => !wanted[name] || String(item[name]) === wanted[name],
    );
  }

  function fits(item, answer, wanted) {
    if (wanted.grade !== "all" && grade(answer) !== wanted.grade) return false;
    if (answer.confidence === null) {
      if (wanted.low > 0 || wanted.high < 100) return false;
    } else if (percent(answer) < wanted.low || percent(answer) > wanted.high) return false;
    if (!wanted.words) return true;
    const words = `${item.text.join("")}\n${item.question}\n${answer.answer}`.toLowerCase();
    return words.includes(wanted.words);
  }

  function worst(answers, order) {
    const keys = answers.map(order).filter((key) => key !== null);
    return keys.length ? Math.max(...keys) : -Infinity;
  }

  function search() {
    const wanted = settings();
    found = data.items
      .filter((item) => asked(item, wanted))
      .map((item) => ({
        item,
        answers: ofView(item, wanted.view).filter((answer) => fits(item, answer, wanted)),
      }))
      .filter((entry) => entry.answers.length > 0);
    for (const entry of found) {
      entry.key = worst(entry.answers, wanted.order);
      entry.answers.sort((a, b) => (wanted.order(b) ?? -9) - (wanted.order(a) ?? -9));
    }
    found.sort((a, b) => b.key - a.key || 0);
    $("range-shown").textContent = `${wanted.low} to ${wanted.high}`;
    $("count").textContent = countLine(wanted.view);
    $("list").replaceChildren();
    shown = 0;
    showMore();
  }

  function countLine(view) {
    const inView = data.items.filter((item) => ofView(item, view).length > 0);
    const total = data.totals[view === "rollouts" ? "rollouts" : "heldout"];
    const answers = found.reduce((sum, entry) => sum + entry.answers.length, 0);
    const part =
      inView.length < total
        ? ` This file holds ${inView.length} of the run's ${total}: the worst of both sorts and a random part.`
        : "";
    const many = view === "rollouts" ? `${answers} completions of ` : "";
    return `${many}${found.length} of ${inView.length} questions.${part}`;
  }

  function showMore() {
    const next = found.slice(shown, shown + PAGE_SIZE);
    $("list").append(...next.map(card));
    shown += next.length;
    $("more").hidden = shown >= found.length;
  }

  // The question and the answers that were sought; all else is folded.
  function card(entry) {
    const { item, answers } = entry;
    const made = element("details");
    const top = element("summary");
    top.append(element("span", "question", item.question), ...answers.map((answer) => said(answer)));
    made.append(top);
    const others = item.answers.filter((answer) => !answers.includes(answer));
    others.sort((a, b) => data.views.indexOf(a.view) - data.views.indexOf(b.view));
    others.forEach((answer) => made.append(said(answer, label(answer.view))));
    const [before, read, after] = item.text;
    const text = element("p", "text", before);
    if (read) text.append(element("mark", "", read));
    text.append(after);
    const facts = [item.reference === null ? null : `reference: ${item.reference}`];
    facts.push(item.family === item.kind ? item.kind : `${item.family}, ${item.kind}`);
    if (item.layer !== null) facts.push(`layer ${item.layer}, ${item.positions}`);
    if (item.step !== null) facts.push(`step ${item.step}`);
    made.append(text, element("p", "meta", facts.filter((fact) => fact !== null).join(" · ")));
    const entryOfList = element("li");
    entryOfList.append(made);
    return entryOfList;
  }

  function said(answer, other) {
    const tone = measurement(answer.view).when.replace(" ", "-");
    const row = element("span", `said ${tone}${other ? " other" : ""}`);
    row.append(meter(percent(answer)));
    const mark = { right: "✓", wrong: "✗", none: "–" }[grade(answer)];
    const score = answer.informativeness === null ? "" : ` ${number(answer.informativeness)}`;
    const graded = element("span", `grade ${grade(answer)}`, mark + score);
    graded.title = answer.informativeness === null ? "without a grade" : `grade ${score}`;
    row.append(graded);
    const words = element("span", "words", answer.answer);
    const aside = [other && answer.view !== "rollouts" ? other : null];
    if (answer.reward !== null) aside.push(`reward ${number(answer.reward)}`);
    const judged = [answer.reason, answer.judge_reply].filter(Boolean);
    if (judged.length) aside.push(`judge: ${judged.join(": ")}`);
    words.append(element("span", "aside", aside.filter(Boolean).join(", ")));
    row.append(words);
    return row;
  }

  function meter(confidence) {
    const made = element("span", "meter");
    const stated = confidence === null ? "–" : String(confidence);
    made.append(element("span", "", stated));
    made.title = confidence === null ? "no well-formed confidence" : `confidence ${stated}`;
    const bar = element("i");
    const filled = element("b");
    filled.style.width = `${confidence ?? 0}%`;
    bar.append(filled);
    made.append(bar);
    return made;
  }

  // What is shown, as a table for other programs

  const OF_ITEM = ["step", "family", "kind", "layer", "positions", "question", "reference"];
  const OF_ANSWER = [
    "view", "confidence", "informativeness", "reward", "answer", "reason", "judge_reply",
  ];

  function saveTable() {
    const rows = found.flatMap(({ item, answers }) =>
      answers.map((a) => [
        ...OF_ITEM.map((n) => item[n]), item.text.join(""), ...OF_ANSWER.map((n) => a[n]),
      ]),
    );
    const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    const lines = [[...OF_ITEM, "text", ...OF_ANSWER], ...rows].map((row) => row.map(quoted).join(","));
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" }));
    link.download = "answers.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function fill(select, values, words = (value) => value) {
    for (const value of values) {
      const option = element("option", "", words(value));
      option.value = value;
      select.append(option);
    }
  }

  // The address holds the filters: "#answers&view=after+sampled&low=70", what is not chosen left out.

  const CHOICES = ["view", "order", "grade", "change", "kind", "family", "layer"];
  const FILTERS = [...CHOICES, "words", "low", "high"];

  function writeAddress() {
    const changed = FILTERS.filter((name) => $(name).value !== defaults[name]);
    const chosen = new URLSearchParams(changed.map((name) => [name, $(name).value]));
    history.replaceState(null, "", `#answers${changed.length ? "&" : ""}${chosen}`);
  }

  function readAddress() {
    const chosen = new URLSearchParams(location.hash.slice(1));
    if (!chosen.has("answers")) return;
    for (const name of FILTERS) $(name).value = chosen.get(name) ?? defaults[name];
    search();
    $("answers").focus();
  }

  function startAnswers() {
    if (!$("list")) return;
    const form = document.querySelector(".filters");
    fill($("view"), data.views, label);
    for (const name of ["kind", "family", "layer"]) {
      const values = new Set(data.items.map((item) => item[name]));
      fill($(name), [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true })));
    }
    defaults = Object.fromEntries(FILTERS.map((name) => [name, $(name).value]));
    const changed = () => (search(), writeAddress());
    // Not "change" of a text: it comes with the click that opens an answer, and would fold it again.
    form.querySelectorAll("input").forEach((one) => one.addEventListener("input", changed));
    form.querySelectorAll("select").forEach((one) => one.addEventListener("change", changed));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(changed));
    $("more").addEventListener("click", showMore);
    $("save").addEventListener("click", saveTable);
    window.addEventListener("hashchange", readAddress);
    search();
    readAddress();
  }

  startCurves();
  startAnswers();
})();
