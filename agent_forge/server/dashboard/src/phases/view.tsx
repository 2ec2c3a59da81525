/** Which view a phase has; a phase of somebody's own has the tables of its report. */

import type { ReactNode } from "react";
import type { PhaseReport, PhaseResult } from "../api/types";
import { words } from "../lib/format";
import type { JobSeries } from "../live/series";
import { PlainTable } from "../ui/parts";
import { AdasView } from "./adas";
import { BakeView } from "./bake";
import { BitNetView } from "./bitnet";
import { CognateView } from "./cognate";
import { CompressView } from "./compress";
import { EvoMergeView } from "./evomerge";
import { QuietStarView } from "./quietstar";
import { TrainView } from "./train";

export interface ViewProps {
  series: JobSeries;
  /** What the phase has written at its end. */
  report: PhaseReport | undefined;
  end: PhaseResult | undefined;
}

const VIEWS: Record<string, (props: ViewProps) => ReactNode> = {
  cognate: CognateView, evomerge: EvoMergeView, quietstar: QuietStarView, bitnet: BitNetView,
  train: TrainView, bake: BakeView, adas: AdasView, compress: CompressView,
};

export function PhaseView({ phase, ...props }: ViewProps & { phase: string }) {
  const Own = VIEWS[phase] ?? Tables;
  return <Own {...props} />;
}

function Tables({ report }: ViewProps) {
  return Object.entries(report?.tables ?? {}).map(([title, rows]) => (
    <details key={title}>
      <summary>{words(title)}</summary>
      <PlainTable rows={rows} label={words(title)} />
    </details>
  ));
}
