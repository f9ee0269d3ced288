(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const metric = data.metric;
  const trials = data.trials || [];
  const narrow = () => window.innerWidth < 640;
  const chosen = { curves: metric.column };

  // --- words and numbers ------------------------------------------------------------------------------------------
  const plain = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1000 && size < 1e7) return value.toLocaleString("en", { maximumFractionDigits: 0 });
    return String(Number(value.toPrecision(4)));
  };
  const isShare = (name) => metric.share && name.endsWith(metric.name);
  const show = (name, value) =>
    isShare(name) && value !== null && value !== undefined ? `${(100 * value).toFixed(2)}%` : plain(value);
  const tick = (name) => (value) => (isShare(name) ? `${Number((100 * value).toFixed(2))}%` : compact(value));
  const compact = (value) => {
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(0).replace("e+", "e");
    return Math.abs(value) >= 1000 ? `${Number((value / 1000).toPrecision(3))}k` : String(Number(value.toPrecision(3)));
  };
  const clock = (s) => (s < 60 ? `${Number(s.toFixed(1))} s` : `${Math.floor(s / 60)} min${Math.round(s % 60) ? ` ${Math.round(s % 60)} s` : ""}`);
  const escape = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const words = (name) => name.replaceAll("_", " ").replace(/^val /, "validation ").replace(/^train /, "training ");
  const named = (trial) => `Trial ${trial.number}${trial.role ? `, the ${trial.role}` : ""}`;
  const describe = (trial, lines) => {
    const own = Object.entries(trial.own).map(([path, value]) => `${escape(path)} <b>${escape(value)}</b>`);
    return [`<b>${escape(named(trial))}</b>`, ...lines, ...own].join("<br>");
  };

  // --- look -------------------------------------------------------------------------------------------------------
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const font = () => getComputedStyle(document.body).fontFamily;
  const label = () => ({ color: colour("muted"), fontSize: 12 });
  const axis = (name, more = {}) => ({
    name, nameLocation: "middle", nameTextStyle: { ...label(), padding: [6, 0, 0, 0] }, nameGap: 24,
    axisLine: { show: false }, axisTick: { show: false }, splitLine: { lineStyle: { color: colour("line") } },
    axisLabel: { ...label(), hideOverlap: true, ...(more.axisLabel || {}) },
    ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "axisLabel")),
  });
  const upright = (more) => axis("", more);
  const tooltip = (formatter) => ({
    trigger: "item", confine: true, formatter, backgroundColor: colour("card"), borderColor: colour("line"),
    textStyle: { color: colour("ink"), fontSize: 13 }, extraCssText: "box-shadow:0 4px 16px rgb(0 0 0 / 18%)",
  });
  const base = () => ({
    animation: false, backgroundColor: "transparent", textStyle: { fontFamily: font(), color: colour("ink") },
    grid: { left: 8, right: 18, top: 34, bottom: 30, containLabel: true },
  });
  const legend = (names) => ({ data: names, top: 0, left: 0, itemWidth: 18, itemHeight: 8, textStyle: label(), selectedMode: false });
  const faintness = () => Math.min(1, Math.max(0.15, 40 / trials.length));  // many lines would make one dark patch
  const shade = (trial) => colour(trial.role || "faint");

  // Bounds that show where the results lie, winner and baseline always inside; values far on the bad side are drawn on
  // the edge as triangles.
  const bounds = (values, kept = []) => {
    const finite = (list) => list.filter((value) => value !== null && value !== undefined);
    const sorted = finite(values).sort((a, b) => a - b);
    if (!sorted.length) return {};
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    const reach = 2 * (at(0.75) - at(0.25)) || Math.abs(at(0.5)) * 0.01;
    let low = sorted[0], high = sorted[sorted.length - 1];
    if (metric.direction === "max") low = Math.min(Math.max(low, at(0.25) - reach), ...finite(kept));
    else high = Math.max(Math.min(high, at(0.75) + reach), ...finite(kept));
    const margin = 0.04 * (high - low) || Math.abs(high) * 0.02 || 1;
    const rough = (high - low + 2 * margin) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const interval = [1, 2, 2.5, 5, 10].find((size) => size * power >= rough) * power;
    if (sorted[0] >= 0) low = Math.max(low, margin);
    const clean = (value) => Number(value.toPrecision(10));
    const min = clean(Math.floor((low - margin) / interval) * interval);
    const max = clean(Math.ceil((high + margin) / interval) * interval);
    return { min: metric.share ? Math.max(0, min) : min, max: metric.share ? Math.min(1, max) : max, interval: clean(interval) };
  };
  const resultBounds = () => bounds(valued.map((trial) => trial.value), valued.filter((trial) => trial.role).map((trial) => trial.value));
  const wide = (values) => {  // a log axis is worth its trouble
    const known = values.filter((value) => value !== null);
    return Math.min(...known) > 0 && Math.max(...known) > 20 * Math.min(...known);
  };
  const inside = (value, { min, max }) => Math.min(max, Math.max(min, value));
  const dot = (trial, place, range, x) => {
    const shown = inside(trial.value, range);
    const cut = shown !== trial.value;
    return {
      value: [x, shown], trial, symbol: cut ? "triangle" : "circle", symbolRotate: cut && metric.direction === "max" ? 180 : 0,
      symbolSize: trial.role ? 13 : 9, itemStyle: { color: trial.state === "failed" ? colour("bad") : shade(trial), opacity: trial.role ? 1 : 0.75 },
      ...(place ? { z: place } : {}),
    };
  };

  // --- charts -----------------------------------------------------------------------------------------------------
  const valued = trials.filter((trial) => trial.value !== null);

  const named = (role) => (role === "winner" ? data.compared : role);

  const anytime = () => {
    const range = resultBounds();
    const longest = Math.max(...data.best.map(([when]) => when), 1);
    const unit = longest > 180 ? 60 : 1;
    const groups = [["trial", ""], ["baseline", "baseline"], [data.compared, "winner"]];
    const dots = groups.map(([name, role]) => ({
      name, type: "scatter", z: role ? 5 : 3, itemStyle: { color: colour(role || "faint") },
      data: valued.filter((trial) => trial.when !== null && trial.role === role).map((trial) => dot(trial, 0, range, trial.when / unit)),
    })).filter((series) => series.data.length);
    const best = {
      name: "best so far", type: "line", step: "end", showSymbol: false, silent: true, z: 4,
      lineStyle: { color: colour("ink"), width: 2 }, itemStyle: { color: colour("ink") },
      data: data.best.map(([when, value]) => [when / unit, inside(value, range)]),
    };
    return {
      ...base(), legend: legend([best.name, ...dots.map((series) => series.name)]),
      xAxis: axis(unit === 60 ? "minutes since the start" : "seconds since the start", { type: "value", min: 0, splitLine: { show: false } }),
      yAxis: upright({ type: "value", ...range, axisLabel: { formatter: tick(metric.name) } }),
      tooltip: tooltip(({ data: { trial } = {} }) => trial && describe(trial, [
        `${escape(metric.label)} <b>${show(metric.name, trial.value)}</b>`, `${trial.state} after ${clock(trial.when)}`])),
      series: [best, ...dots],
    };
  };

  const curves = () => {
    const name = chosen.curves;
    const drawn = trials.filter((trial) => trial.curve[name] && trial.curve.step);
    const points = drawn.reduce((sum, trial) => sum + trial.curve.step.length, 0);
    const values = drawn.flatMap((trial) => trial.curve[name]);
    const ours = name === metric.column || name === `train_${metric.name}`;
    const log = (name.endsWith("loss") || name === "lr") && wide(values);
    const range = ours && !log ? bounds(values, drawn.filter((trial) => trial.role).flatMap((trial) => trial.curve[name])) : {};
    const series = drawn.map((trial) => ({
      type: "line", name: named(trial.role) || "other trials", trial, triggerLineEvent: true, z: trial.role ? 5 : 2,
      symbol: "circle", symbolSize: 8, showSymbol: points < 8000, itemStyle: { color: shade(trial), opacity: trial.curve.step.length < 2 ? 0.8 : 0 },
      lineStyle: { color: shade(trial), width: trial.role ? 3 : 1.3, opacity: trial.role ? 1 : 0.55 * faintness() },
      emphasis: { focus: "series", lineStyle: { width: 3.5, opacity: 1 }, itemStyle: { opacity: 1 } }, blur: { lineStyle: { opacity: 0.12 } },
      connectNulls: false, data: trial.curve.step.map((step, index) => [step, trial.curve[name][index]]),
    }));
    const present = [data.compared, "baseline", "other trials"].filter((group) => series.some((each) => each.name === group));
    return {
      ...base(), grid: { ...base().grid, top: 40 },
      legend: { ...legend(present.map((group) => ({ name: group, itemStyle: { opacity: 0 }, lineStyle: { opacity: 1 } }))) },
      xAxis: axis(data.steps, { type: "value", min: 0, splitLine: { show: false }, axisLabel: { formatter: compact } }),
      yAxis: upright({ type: log ? "log" : "value", scale: true, ...range, axisLabel: { formatter: tick(name) } }),
      tooltip: tooltip(({ seriesIndex, data: point }) => {
        const trial = drawn[seriesIndex];
        const at = point ? [`step ${plain(point[0])}: ${escape(words(name))} <b>${show(name, point[1])}</b>`] : [];
        return describe(trial, [...at, `best ${escape(metric.label)} <b>${show(metric.name, trial.value)}</b>, ${trial.state}`]);
      }),
      series,
    };
  };

  const spaceAxis = (range, values) => {
    if (range.options) return { type: "category", data: [...new Set([...range.options, ...values.filter((value) => value !== null)])] };
    const known = values.filter((value) => value !== null && (!range.log || value > 0));
    return { type: range.log ? "log" : "value", min: Math.min(range.low, ...known), max: Math.max(range.high, ...known) };
  };
  const placed = (range, value) => (value === null || value === undefined || (range.log && value <= 0) ? null : value);

  const parallel = () => {
    const phone = narrow();
    const range = resultBounds();
    const axes = data.space.map((each, dim) => ({
      dim, name: each.path, ...spaceAxis(each, trials.map((trial) => trial.values[each.path])),
      axisLabel: { ...label(), fontSize: 11, hideOverlap: true, backgroundColor: colour("card"), padding: [0, 2], ...(each.options ? {} : { formatter: compact }) },
    }));
    axes.push({ dim: axes.length, name: metric.label, type: "value", ...range, axisLabel: { ...label(), fontSize: 11, hideOverlap: true, formatter: tick(metric.name) } });
    const ordered = [...valued].sort((a, b) => (a.role ? 1 : 0) - (b.role ? 1 : 0));
    return {
      ...base(),
      parallel: {
        layout: phone ? "vertical" : "horizontal", left: phone ? 20 : 48, right: phone ? 24 : 64, top: phone ? 34 : 44, bottom: phone ? 24 : 24,
        parallelAxisDefault: {
          nameLocation: phone ? "start" : "end", nameGap: phone ? 8 : 16, nameTextStyle: { color: colour("ink"), backgroundColor: colour("card"), fontSize: 12, align: phone ? "left" : "center", verticalAlign: phone ? "bottom" : undefined, padding: phone ? [0, 0, 6, 0] : 0 },
          axisLine: { lineStyle: { color: colour("faint") } }, axisTick: { lineStyle: { color: colour("faint") } }, minorTick: { show: false }, splitLine: { show: false },
          areaSelectStyle: { color: colour("winner"), opacity: 0.15, borderColor: colour("winner") },
        },
      },
      parallelAxis: axes,
      visualMap: {
        show: false, dimension: axes.length - 1, min: range.min, max: range.max, seriesIndex: 0,
        inRange: { color: metric.direction === "max" ? [colour("scale-low"), colour("scale-high")] : [colour("scale-high"), colour("scale-low")] },
      },
      tooltip: tooltip(({ data: { trial } = {} }) => trial && describe(trial, [`${escape(metric.label)} <b>${show(metric.name, trial.value)}</b>`])),
      series: [{
        type: "parallel", inactiveOpacity: 0.04, activeOpacity: 0.8 * Math.sqrt(faintness()), emphasis: { lineStyle: { width: 4, opacity: 1 } },
        data: ordered.map((trial) => ({
          trial, value: [...data.space.map((each, dim) => placed(each, trial.values[each.path]) ?? axes[dim].min ?? "-"), inside(trial.value, range)],
          lineStyle: { width: trial.role ? 3.5 : 1.6, opacity: trial.role ? 0.9 : 0.8 * faintness(), ...(trial.role ? { color: colour(trial.role) } : {}) },
        })),
      }],
    };
  };

  const scatter = (path) => {
    const each = data.space.find((one) => one.path === path);
    const range = resultBounds();
    const shown = valued.filter((trial) => placed(each, trial.values[path]) !== null);
    const ordered = [...shown].sort((a, b) => (a.role ? 1 : 0) - (b.role ? 1 : 0));
    return {
      ...base(), grid: { ...base().grid, top: 12, right: 14 },
      xAxis: axis(path, {
        ...spaceAxis(each, shown.map((trial) => trial.values[path])), splitLine: { show: false }, nameGap: 26,
        nameTextStyle: { color: colour("ink"), fontSize: 13, fontWeight: 600 }, axisLabel: each.options ? { hideOverlap: true } : { formatter: compact },
      }),
      yAxis: upright({ type: "value", ...range, splitNumber: 4, axisLabel: { formatter: tick(metric.name) } }),
      tooltip: tooltip(({ data: { trial } }) => describe(trial, [`${escape(metric.label)} <b>${show(metric.name, trial.value)}</b>`])),
      series: [{ type: "scatter", data: ordered.map((trial) => dot(trial, 0, range, trial.values[path])) }],
    };
  };

  // Results against another objective; with two objectives the line is the border of what was reached.
  const front = (name) => {
    const cost = data.costs.find((one) => one.name === name);
    const range = resultBounds();
    const shown = valued.filter((trial) => (trial.scores[name] ?? null) !== null);
    const log = wide(shown.map((trial) => trial.scores[name]));
    const groups = [["other trials", "faint"], ["on the front", "good"], ["baseline", "baseline"], [data.compared, "winner"]];
    const group = (trial) => named(trial.role) || (data.front.includes(trial.number) ? "on the front" : "other trials");
    const dots = groups.map(([each, hue]) => ({
      name: each, type: "scatter", z: hue === "faint" ? 3 : 5, itemStyle: { color: colour(hue) },
      data: shown.filter((trial) => group(trial) === each).map((trial) => {
        const point = dot(trial, 0, range, trial.scores[name]);
        return { ...point, itemStyle: { ...point.itemStyle, color: colour(hue), opacity: hue === "faint" ? 0.6 : 1 } };
      }),
    })).filter((series) => series.data.length);
    const order = shown.filter((trial) => data.front.includes(trial.number)).sort((a, b) => a.scores[name] - b.scores[name]);
    const border = {
      name: "front", type: "line", step: cost.direction === "min" ? "end" : "start", showSymbol: false, silent: true, z: 4,
      lineStyle: { color: colour("good"), width: 1.5, opacity: 0.7 }, itemStyle: { color: colour("good") },
      data: order.map((trial) => [trial.scores[name], inside(trial.value, range)]),
    };
    return {
      ...base(), legend: legend(dots.map((series) => series.name)),
      xAxis: axis(cost.label, { type: log ? "log" : "value", scale: true, splitLine: { show: false }, axisLabel: { formatter: tick(name) } }),
      yAxis: upright({ type: "value", ...range, axisLabel: { formatter: tick(metric.name) } }),
      tooltip: tooltip(({ data: { trial } = {} }) => trial && describe(trial, [
        `${escape(metric.label)} <b>${show(metric.name, trial.value)}</b>`,
        ...data.costs.map((each) => `${escape(each.label)} <b>${show(each.name, trial.scores[each.name])}</b>`), trial.state])),
      series: data.costs.length > 1 ? dots : [border, ...dots],
    };
  };

  const pair = (names, log) => {
    const curve = data.curve;
    const hues = { train: "muted", val: "winner", lr: "baseline" };
    const present = names.filter((name) => curve[name]);
    const best = curve.step.indexOf(data.best_step);
    return {
      ...base(), grid: { ...base().grid, top: present.length > 1 ? 34 : 14 }, legend: present.length > 1 ? legend(present.map(words)) : undefined,
      xAxis: axis("optimizer steps", { type: "value", min: 0, splitLine: { show: false }, axisLabel: { formatter: compact } }),
      yAxis: upright({ type: log && wide(present.flatMap((name) => curve[name])) ? "log" : "value", scale: names[0] !== "lr", axisLabel: { formatter: tick(names[0]) } }),
      tooltip: { ...tooltip((points) => [`<b>step ${plain(points[0].data[0])}</b>`, ...points.map((point) => `${point.marker}${escape(point.seriesName)} <b>${show(names[0], point.data[1])}</b>`)].join("<br>")), trigger: "axis" },
      series: present.map((name) => ({
        name: words(name), type: "line", showSymbol: curve.step.length < 40, symbol: "circle", symbolSize: 5,
        itemStyle: { color: colour(hues[name.split("_")[0]]) }, lineStyle: { width: 2.4 },
        data: curve.step.map((step, index) => [step, curve[name][index]]),
        ...(name.startsWith("val_") && best >= 0 ? { markLine: { silent: true, symbol: "none", lineStyle: { color: colour("muted"), type: "dashed" }, label: { formatter: "best", color: colour("muted") }, data: [{ xAxis: data.best_step }] } } : {}),
      })),
    };
  };

  const makers = {
    anytime, curves, parallel, scatter, front, loss: () => pair(["train_loss", "val_loss"], true),
    metric: () => pair([`train_${metric.name}`, metric.column], false), lr: () => pair(["lr"], false),
  };

  // --- the page ---------------------------------------------------------------------------------------------------
  const drawn = [];
  const draw = () => {
    drawn.splice(0).forEach((chart) => chart.dispose());
    document.querySelectorAll("[data-chart]").forEach((place) => {
      const [kind, path] = place.dataset.chart.split(/:(.*)/s);
      if (kind === "parallel") place.style.height = narrow() ? `${90 * (data.space.length + 1)}px` : "";
      const chart = echarts.init(place, null, { renderer: trials.length > 150 ? "canvas" : "svg" });
      chart.setOption(makers[kind](path));
      drawn.push(chart);
    });
  };

  const choices = (place) => {
    const names = [metric.column, "train_" + metric.name, "val_loss", "train_loss", "lr"];
    const present = [...new Set(names)].filter((name) => trials.some((trial) => trial.curve[name]));
    if (!present.includes(chosen.curves)) chosen.curves = present[0];
    present.forEach((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name === "lr" ? "learning rate" : words(name);
      button.setAttribute("aria-pressed", name === chosen.curves);
      button.addEventListener("click", () => {
        chosen.curves = name;
        place.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", each === button));
        draw();
      });
      place.append(button);
    });
  };

  const sortable = (table) => {
    const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    table.querySelectorAll("th").forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = (a, b) => key(a, column).localeCompare(key(b, column), "en", { numeric: true });
        const number = (row) => (key(row, column) === "" ? NaN : Number(key(row, column)));
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const [x, y] = [number(a), number(b)];
          const by = Number.isNaN(x) || Number.isNaN(y) ? order(a, b) : x - y;
          return down ? -by : by;
        });
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  };

  const copyable = (button) => button.addEventListener("click", () => {
    const pre = button.closest("figure").querySelector("pre");
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const select = () => { getSelection().selectAllChildren(pre); document.execCommand("copy"); done(); };
    navigator.clipboard ? navigator.clipboard.writeText(pre.textContent).then(done, select) : select();
  });

  document.querySelectorAll("[data-choices]").forEach(choices);
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".copy").forEach(copyable);
  draw();

  let waiting, width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (width === window.innerWidth) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const paint = (theme) => () => { document.documentElement.dataset.theme = theme; draw(); };
  window.addEventListener("beforeprint", paint("light"));
  window.addEventListener("afterprint", paint(""));
})();
