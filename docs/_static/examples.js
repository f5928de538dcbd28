// A button on each example that copies it: of a console block its commands alone, without "$ ".
document.querySelectorAll("div.highlight").forEach((block) => {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", () => {
    const lines = block.querySelector("pre").textContent.split("\n");
    const isConsole = lines.some((line) => line.startsWith("$ "));
    const commands = lines.filter((line) => /^[$>] /.test(line)).map((line) => line.slice(2));
    navigator.clipboard.writeText((isConsole ? commands : lines).join("\n").trimEnd() + "\n").then(() => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });
  block.append(button);
});

// What is wider than its place can be scrolled by the keyboard too.
document.querySelectorAll("pre, figure.drawn > div, .table-wrapper").forEach((block) => {
  if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
});
