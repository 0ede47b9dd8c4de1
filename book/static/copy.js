// Puts a copy button on each block of code. Browsers give a clipboard only to local files, https and localhost.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll("div.highlight")) {
    if (block.closest(".cell_output")) continue;
    const button = document.createElement("button");
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const code = block.querySelector("pre").cloneNode(true);
      // Of an interactive example only the code is copied: no prompts, no outputs.
      for (const part of code.querySelectorAll(".gp, .go")) part.remove();
      await navigator.clipboard.writeText(code.textContent.trim() + "\n");
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.append(button);
  }
});
