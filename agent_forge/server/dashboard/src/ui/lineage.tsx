/** Who is whose parent, drawn in columns by generation; every box is a link. */

import { useEffect, useRef } from "react";
import type { Checkpoint, Lineage } from "../api/types";
import { bytes, modelName, phaseName } from "../lib/format";
import { link } from "../lib/route";

const WIDTH = 130;
const HEIGHT = 52;
const GAP_X = 14;
const GAP_Y = 14;

interface Place {
  node: Checkpoint;
  x: number;
  y: number;
}

export function LineageGraph({ lineage, here }: { lineage: Lineage; here: string }) {
  const box = useRef<HTMLDivElement>(null);
  const places = arranged(lineage);
  const end = (places.get(here)?.x ?? 0) + WIDTH;
  useEffect(() => {
    if (box.current) box.current.scrollLeft = end + GAP_X - box.current.clientWidth;
  }, [end]);
  if (places.size < 2) return <p className="quiet">It has no known parent and no known child.</p>;
  const all = [...places.values()];
  const width = Math.max(...all.map((one) => one.x)) + WIDTH + 2;
  const height = Math.max(...all.map((one) => one.y)) + HEIGHT + 2;
  return (
    <div ref={box} className="scroll" tabIndex={0} role="region" aria-label="Lineage, parents on the left">
      <svg className="lineage" width={width} height={height} viewBox={`-1 -1 ${width} ${height}`}>
        {lineage.edges.map(({ parent = "", child = "" }) => {
          const from = places.get(parent);
          const to = places.get(child);
          if (!from || !to) return null;
          const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
          const bend = (x1 + x2) / 2;
          return <path key={`${parent}-${child}`} d={`M${x1},${y1} C${bend},${y1} ${bend},${y2} ${x2},${y2}`} />;
        })}
        {all.map(({ node, x, y }) => (
          <a key={node.id} href={link("models", node.id)} aria-current={node.id === here ? "true" : undefined}>
            <rect x={x} y={y} width={WIDTH} height={HEIGHT} rx="8" className={node.id === here ? "here" : ""} />
            <title>{modelName(node)}</title>
            <text x={x + 10} y={y + 21} className="strong">{node.name === node.phase ? phaseName(node.phase) : short(node.name)}</text>
            <text x={x + 10} y={y + 39}>
              {[node.name === node.phase ? "" : phaseName(node.phase), bytes(node.deployable_bytes)].filter(Boolean).join(", ")}
            </text>
          </a>
        ))}
      </svg>
    </div>
  );
}

const short = (name: string) => {
  const text = name.replaceAll("_", " ");
  return text.length > 15 ? `${text.slice(0, 13)}…` : text;
};

/** Give each checkpoint the column behind its last parent. */
function arranged(lineage: Lineage): Map<string, Place> {
  const nodes = new Map(lineage.nodes.map((one) => [one.id, one]));
  const parents = (id: string) => lineage.edges.filter((edge) => edge.child === id).map((edge) => edge.parent ?? "");
  const depths = new Map<string, number>();
  const depth = (id: string, seen: string[] = []): number => {
    const known = depths.get(id);
    if (known !== undefined) return known;
    const above = parents(id).filter((one) => nodes.has(one) && !seen.includes(one));
    const value = above.length ? 1 + Math.max(...above.map((one) => depth(one, [...seen, id]))) : 0;
    depths.set(id, value);
    return value;
  };
  const filled = new Map<number, number>();
  const places = new Map<string, Place>();
  for (const node of [...lineage.nodes].sort((a, b) => depth(a.id) - depth(b.id) || a.time - b.time)) {
    const column = depth(node.id);
    const row = filled.get(column) ?? 0;
    filled.set(column, row + 1);
    places.set(node.id, { node, x: column * (WIDTH + GAP_X), y: row * (HEIGHT + GAP_Y) });
  }
  const most = Math.max(0, ...filled.values());
  for (const place of places.values()) {
    place.y += ((most - (filled.get(depth(place.node.id)) ?? 0)) * (HEIGHT + GAP_Y)) / 2;
  }
  return places;
}
