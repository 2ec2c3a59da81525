import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The server's policy allows files of its own alone: nothing is inlined, nothing comes from outside.
export default defineConfig({
  plugins: [react()],
  base: "/",
  build: {
    outDir: "dist",
    assetsDir: "assets",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    sourcemap: false,
  },
});
