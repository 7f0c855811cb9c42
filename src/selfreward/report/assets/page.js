"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const half = tip.offsetWidth / 2;
    const x = Math.min(Math.max(box.left + box.width / 2, half + 8), document.documentElement.clientWidth - half - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${x - half + window.scrollX}px`;
    tip.style.top = `${(above > 4 ? above : box.bottom + 8) + window.scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointerover", (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    if (target && target.dataset.tip) show(target); else hide();
  });
  document.addEventListener("scroll", hide, { passive: true });
  for (const button of document.querySelectorAll("button[data-open]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const items = document.querySelectorAll(button.dataset.open);
      const open = !Array.from(items).every((item) => item.open);
      for (const item of items) item.open = open;
      button.textContent = open ? "Close all judgements" : "Open all judgements";
    });
  }
})();
