/** Points on two axes, with intervals, a front and a limit; drawn as SVG, so that its words can be read. */

import { number, tickLabels } from "../lib/format";
import { useMedia } from "../lib/theme";

export interface Dot {
  x: number;
  y: number;
  /** Bounds of y. */
  low?: number;
  high?: number;
  name: string;
  /** main: what it is about; front: on the front; other: compared with; quiet: the rest. */
  look?: "main" | "front" | "other" | "quiet";
}

interface Props {
  label: string;
  xLabel: string;
  yLabel: string;
  dots: Dot[];
  /** A line through these looks, from left to right. */
  joined?: Dot["look"][];
  /** A level that matters, such as a limit or nothing gained. */
  level?: { y: number; name: string };
  /** Names are written beside these looks. */
  named?: Dot["look"][];
}

const EDGE = { left: 58, right: 16, top: 20, bottom: 40 };
const LETTER = 6.4; // width of a letter
const LINE = 14;

export function Scatter({ label, xLabel, yLabel, dots, joined = [], level, named = ["main"] }: Props) {
  const isPhone = useMedia("(max-width: 50rem)");
  if (!dots.length) return null;
  // A drawing of its own size, so that its words stay readable where there is little room.
  const [WIDTH, HEIGHT] = isPhone ? [340, 260] : [560, 280];
  const bounds = dots.flatMap((dot) => [dot.y, dot.low ?? dot.y, dot.high ?? dot.y]);
  const across = scale(dots.map((dot) => dot.x), EDGE.left, WIDTH - EDGE.right);
  const up = scale(level ? [...bounds, level.y] : bounds, HEIGHT - EDGE.bottom, EDGE.top);
  const names = placed(dots.filter((dot) => named.includes(dot.look)).map((dot) => ({ dot, x: across.at(dot.x), y: up.at(dot.y) })), WIDTH);
  const path = dots.filter((dot) => joined.includes(dot.look)).sort((a, b) => a.x - b.x);
  return (
    <svg className="scatter" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`${label}: ${spoken(dots)}`}>
      {up.ticks.map((tick, index) => (
        <g key={tick}>
          <line className="grid" x1={EDGE.left} x2={WIDTH - EDGE.right} y1={up.at(tick)} y2={up.at(tick)} />
          <text x={EDGE.left - 6} y={up.at(tick) + 4} textAnchor="end">{up.labels[index]}</text>
        </g>
      ))}
      {across.ticks.map((tick, index) => (
        <text key={tick} x={across.at(tick)} y={HEIGHT - EDGE.bottom + 16} textAnchor="middle">{across.labels[index]}</text>
      ))}
      <text x={(EDGE.left + WIDTH - EDGE.right) / 2} y={HEIGHT - 6} textAnchor="middle">{xLabel}</text>
      <text transform={`translate(12 ${(HEIGHT - EDGE.bottom + EDGE.top) / 2}) rotate(-90)`} textAnchor="middle">{yLabel}</text>
      {level ? (
        <g className="level">
          <line x1={EDGE.left} x2={WIDTH - EDGE.right} y1={up.at(level.y)} y2={up.at(level.y)} />
          <text x={WIDTH - EDGE.right} y={up.at(level.y) - 4} textAnchor="end">{level.name}</text>
        </g>
      ) : null}
      {path.length > 1 ? <polyline points={path.map((dot) => `${across.at(dot.x)},${up.at(dot.y)}`).join(" ")} /> : null}
      {dots.map((dot, index) => (
        <g key={index} className={dot.look ?? "quiet"}>
          {dot.low !== undefined && dot.high !== undefined ? (
            <line x1={across.at(dot.x)} x2={across.at(dot.x)} y1={up.at(dot.low)} y2={up.at(dot.high)} />
          ) : null}
          <circle cx={across.at(dot.x)} cy={up.at(dot.y)} r={dot.look === "main" ? 6 : 4.5}>
            <title>{`${dot.name}: ${number(dot.x)}, ${number(dot.y)}`}</title>
          </circle>
          {names.has(dot) ? <text {...names.get(dot)}>{dot.name}</text> : null}
        </g>
      ))}
    </svg>
  );
}

interface Label {
  x: number;
  y: number;
  textAnchor: "start" | "end";
}

/** Where names are written: above their dot, or below it where another name stands, or nowhere. */
function placed(points: { dot: Dot; x: number; y: number }[], width: number): Map<Dot, Label> {
  const taken = points.map(({ x, y }) => ({ left: x - 3, right: x + 3, y: y + 4 }));
  const places = new Map<Dot, Label>();
  // The dots that the drawing is about come first.
  for (const { dot, x, y } of [...points].sort((a, b) => Number(b.dot.look === "main") - Number(a.dot.look === "main"))) {
    const isEnd = x > width * 0.7;
    const long = dot.name.length * LETTER;
    const [left, right] = isEnd ? [x - 4 - long, x - 4] : [x + 4, x + 4 + long];
    const line = [y - 8, y + LINE + 3].find((place) =>
      taken.every((one) => right < one.left || left > one.right || Math.abs(place - one.y) >= LINE));
    if (line === undefined) continue;
    taken.push({ left, right, y: line });
    places.set(dot, { x: isEnd ? x - 4 : x + 4, y: line, textAnchor: isEnd ? "end" : "start" });
  }
  return places;
}

const spoken = (dots: Dot[]) =>
  dots.slice(0, 12).map((dot) => `${dot.name} ${number(dot.x)}, ${number(dot.y)}`).join("; ");

/** A linear scale from the values to pixels, with about five round ticks. */
function scale(values: number[], from: number, to: number) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (high === low) [low, high] = [low - (Math.abs(low) / 10 || 1), high + (Math.abs(high) / 10 || 1)];
  const room = (high - low) * 0.06;
  [low, high] = [low - room, high + room];
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((one) => one * power >= rough) ?? 10) * power;
  const first = Math.ceil(low / step);
  const ticks = Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
  return { at: (value: number) => from + ((value - low) / (high - low)) * (to - from), ticks, labels: tickLabels(ticks, step) };
}
