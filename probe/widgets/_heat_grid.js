// Draws what the model says and reports clicks; every text goes in as text, never as markup.
function render({ model, el }) {
  const draw = () => {
    const [rows, columns, colours, texts, marked] = ["rows", "columns", "colours", "texts", "marked"].map((k) =>
      model.get(k),
    );
    const every = Math.max(1, Math.ceil(columns.length / 12));
    const table = document.createElement("table");
    table.style.cssText = "border-collapse:collapse;font:11px system-ui,sans-serif";
    table.setAttribute("role", "grid");
    rows.forEach((name, r) => {
      const line = table.insertRow();
      const head = document.createElement("th");
      head.textContent = name;
      head.style.cssText = "text-align:right;padding-right:6px;font-weight:normal;white-space:nowrap";
      line.append(head);
      columns.forEach((column, c) => {
        const button = document.createElement("button");
        const label = `${name}, t ${column}: ${texts[r][c]}`;
        button.title = label;
        button.setAttribute("aria-label", label);
        button.dataset.cell = `${r},${c}`;
        const on = marked[0] === r && marked[1] === c;
        button.style.cssText =
          `display:block;width:18px;height:18px;padding:0;cursor:pointer;background:${colours[r][c]};` +
          `border:${on ? "2px solid #D55E00" : "1px solid #fff"}`;
        button.addEventListener("click", () => {
          model.set("clicked", [r, c, model.get("clicked")[2] + 1]);
          model.save_changes();
        });
        const cell = line.insertCell();
        cell.style.padding = "0";
        cell.append(button);
      });
    });
    const foot = table.insertRow();
    foot.insertCell();
    columns.forEach((column, c) => {
      const cell = foot.insertCell();
      cell.style.cssText = "padding:2px 0 0;font-size:10px;max-width:18px;overflow:visible;white-space:nowrap";
      cell.textContent = c % every === 0 ? column : "";
    });
    el.replaceChildren(table);
  };
  ["rows", "columns", "colours", "texts", "marked"].forEach((name) => model.on(`change:${name}`, draw));
  draw();
}
export default { render };
