/** A live chart of one metric; a value that is no number is a gap with a mark. */

import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";
import { measured, number, phaseName, tickLabels } from "../lib/format";
import { labelOf } from "../lib/measures";
import { useDark } from "../lib/theme";
import { curve, metricsOf, smoothed, type Curve } from "../live/curve";
import type { JobSeries } from "../live/series";

// Steps are whole numbers, and so are the ticks under them.
const WHOLE = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
const SMOOTH_FROM = 60; // points; fewer are read as they are
const CHIPS = 6; // metrics with a button; the others are in a list

export function LiveChart({ series, phase }: { series: JobSeries; phase: string }) {
  const [chosen, setChosen] = useState("");
  const [ownPhase, setOwnPhase] = useState("");
  const phases = series.phases();
  const shown = phases.includes(ownPhase) ? ownPhase : phases.includes(phase) ? phase : (phases.at(-1) ?? "");
  const metrics = metricsOf(series, shown);
  const metric = metrics.includes(chosen) ? chosen : (metrics[0] ?? "");
  const others = metrics.slice(CHIPS);
  const { name: said, unit } = labelOf(metric);
  const version = series.version;
  const data = useMemo(
    () => curve(series, shown, metric),
    // The series grows in place; its version says when.
    // eslint-disable-next-line react-hooks/exhaustive-deps
    [series, shown, metric, version],
  );
  if (!metric) {
    return <p className="quiet">{series.loaded ? "This run has not measured anything yet." : "Loading the points …"}</p>;
  }
  return (
    <div className="chart">
      <div className="chips">
        {phases.length > 1 ? (
          <label>
            Phase{" "}
            <select value={shown} onChange={(event) => setOwnPhase(event.target.value)}>
              {phases.map((name) => (
                <option key={name} value={name}>{phaseName(name)}</option>
              ))}
            </select>
          </label>
        ) : null}
        <div role="group" aria-label="Metric" className="chips">
          {metrics.slice(0, CHIPS).map((name) => (
            <button key={name} type="button" aria-pressed={name === metric} onClick={() => setChosen(name)}>
              {labelOf(name).name}
            </button>
          ))}
          {others.length ? (
            <select
              aria-label="Other metrics" className={others.includes(metric) ? "on" : ""}
              value={others.includes(metric) ? metric : ""} onChange={(event) => setChosen(event.target.value)}
            >
              <option value="">{others.length} more …</option>
              {others.map((name) => <option key={name} value={name}>{labelOf(name).name}</option>)}
            </select>
          ) : null}
        </div>
      </div>
      <Plot data={data} label={said + (unit ? `, ${unit}` : "")} />
      <p className="chart-says" data-points={data.points} data-gaps={data.gaps.length}>
        {data.last === null ? "No number yet" : `Now ${measured(data.last)}, so far between ${measured(data.lowest ?? 0)} and ${measured(data.highest ?? 0)}`}
        {`; ${data.points.toLocaleString("en-US")} points. `}
        {data.gaps.length ? (
          <strong className="bad">
            ▲ {data.gaps.length === 1 ? "One value is" : `${data.gaps.length} values are`} not a number
            (first at step {number(data.gaps[0] ?? 0)}).
          </strong>
        ) : null}
      </p>
    </div>
  );
}

function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function Plot({ data, label }: { data: Curve; label: string }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const marks = useRef(data);
  const dark = useDark();
  marks.current = data;
  const isNoisy = data.x.length >= SMOOTH_FROM;
  useEffect(() => {
    const home = box.current;
    if (!home) return undefined;
    const size = () => ({ width: Math.max(240, home.clientWidth), height: (home.clientWidth < 500 ? 220 : 300) * textScale() });
    const made = new uPlot(options(size(), label, marks), rows(marks.current), home);
    plot.current = made;
    const watcher = new ResizeObserver(() => made.setSize(size()));
    watcher.observe(home);
    return () => {
      watcher.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [label, dark, isNoisy]);
  useEffect(() => plot.current?.setData(rows(data)), [data]);
  return <div ref={box} className="plot" role="img" aria-label={`Chart of ${label} by step`} />;
}

/** How much larger the page's text is than a browser's usual. */
const textScale = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

function rows(data: Curve): uPlot.AlignedData {
  const isNoisy = data.x.length >= SMOOTH_FROM;
  return [data.x, data.y, isNoisy ? smoothed(data.y) : data.y.map(() => null)];
}

function options(
  size: { width: number; height: number }, label: string, marks: { current: Curve },
): uPlot.Options {
  const [line, faint, ink, grid, bad] = ["--accent-line", "--accent-faint", "--ink-2", "--line", "--bad"].map(colour);
  const scale = textScale();
  const font = `${12 * scale}px system-ui, sans-serif`;
  const axis = {
    stroke: ink, font, labelFont: `600 ${font}`, labelSize: 18 * scale,
    grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 },
  };
  const isNoisy = marks.current.x.length >= SMOOTH_FROM;
  return {
    ...size,
    legend: { show: false },
    cursor: { y: false, points: { size: 7 } },
    scales: { x: { time: false } },
    axes: [
      { ...axis, label: "step", size: 34 * scale, incrs: WHOLE, values: (_, ticks) => ticks.map((tick) => number(tick, 4)) },
      { ...axis, label, size: 56 * scale, values: (_, ticks, __, ___, step) => tickLabels(ticks, step) },
    ],
    series: [
      {},
      { stroke: isNoisy ? faint : line, width: isNoisy ? 1 : 2, spanGaps: false, points: { show: !isNoisy } },
      { stroke: line, width: 2.5, spanGaps: false, points: { show: false } },
    ],
    hooks: {
      draw: [(u) => drawMarks(u, marks.current, { ink: ink ?? "", bad: bad ?? "" })],
      setCursor: [(u) => tell(u)],
    },
  };
}

/** Show the value under the cursor. */
function tell(u: uPlot): void {
  const index = u.cursor.idx;
  let tip = u.over.querySelector<HTMLElement>(".tip");
  if (!tip) {
    tip = document.createElement("div");
    tip.className = "tip";
    u.over.append(tip);
  }
  const value = index === null || index === undefined ? null : u.data[1]?.[index];
  tip.hidden = value === null || value === undefined;
  if (index === null || index === undefined || typeof value !== "number") return;
  const x = u.data[0][index] ?? 0;
  tip.textContent = `step ${number(x, 4)}: ${number(value, 4)}`;
  const left = u.valToPos(x, "x");
  tip.style.left = `${left > u.over.clientWidth - 140 ? left - 140 : left + 10}px`;
}

/** Draw where stages begin, and a mark where a value is not a number. */
function drawMarks(u: uPlot, data: Curve, colours: { ink: string; bad: string }): void {
  const { ctx, bbox } = u;
  const ratio = (window.devicePixelRatio || 1) * textScale();
  ctx.save();
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.fillStyle = ctx.strokeStyle = colours.ink;
  let free = 0;
  for (const stage of data.stages) {
    const x = u.valToPos(stage.x, "x", true);
    if (x < bbox.left - 1 || x > bbox.left + bbox.width) continue;
    if (stage.x > 0) {
      ctx.setLineDash([3 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    if (x >= free && x + ctx.measureText(stage.name).width < bbox.left + bbox.width) {
      ctx.fillText(stage.name, x + 4 * ratio, bbox.top + 11 * ratio);
      free = x + ctx.measureText(stage.name).width + 12 * ratio;
    }
  }
  ctx.fillStyle = colours.bad;
  const floor = bbox.top + bbox.height;
  for (const gap of data.gaps) {
    const x = u.valToPos(gap, "x", true);
    ctx.beginPath();
    ctx.moveTo(x, floor - 11 * ratio);
    ctx.lineTo(x - 6 * ratio, floor);
    ctx.lineTo(x + 6 * ratio, floor);
    ctx.fill();
  }
  ctx.restore();
}
