/** Files to download, in parts that are fetched again when they break off. */

import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { download } from "../api/client";
import { bytes } from "../lib/format";
import { Failure, Table } from "./parts";

interface File {
  name: string;
  bytes: number;
  sha256?: string;
}

/** at: where the server sends them. */
export function FileTable({ files, at }: { files: File[]; at: string }) {
  const [share, setShare] = useState(0);
  const fetchFile = useMutation({
    mutationFn: (file: File) => {
      const place = file.name.split("/").map(encodeURIComponent).join("/");
      return download(`${at}/${place}`, file.name.split("/").at(-1) ?? file.name, file.bytes, setShare);
    },
    onMutate: () => setShare(0),
  });
  const hashed = files.some((file) => file.sha256);
  const rows = files.map((file) => ({
    key: file.name,
    cells: [
      file.name, bytes(file.bytes),
      ...(hashed ? [<code key="h" title={file.sha256}>{file.sha256?.slice(0, 12)}</code>] : []),
      <button key="d" type="button" disabled={fetchFile.isPending} onClick={() => fetchFile.mutate(file)}>
        {fetchFile.isPending && fetchFile.variables.name === file.name ? `${Math.floor(100 * share)}%` : "Download"}<span className="off-screen"> {file.name}</span>
      </button>,
    ],
  }));
  return (
    <>
      <Failure error={fetchFile.error} />
      <Table label="Files" stack={["", "Size", ...(hashed ? ["SHA-256"] : []), ""]} head={["Name", "Size", ...(hashed ? ["SHA-256"] : []), <span key="d" className="off-screen">Download</span>]} rows={rows} />
      <p className="quiet">Files come in parts of 8 MB; a part that breaks off is fetched again. In a terminal, <code>curl -C - -H "Authorization: Bearer …"</code> goes on after a break.</p>
    </>
  );
}
