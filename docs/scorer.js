// As Sphinx scores by itself, but the page of the name comes before an object of it: for "logs", Logs before Runtime.logs.
// A decision, which is for contributors, comes after the pages.
const asked = (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase();
var Scorer = {
  score: ([page, title, , , score]) => {
    if (page.startsWith("decisions/")) return score - 20;
    return title.toLowerCase() === asked && /^(how-to|tutorial)\//.test(page) ? score + 12 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
