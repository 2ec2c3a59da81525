import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { ApiError, takeKeyFromAddress } from "./api/client";
import { App } from "./app";
import { applyTheme } from "./lib/theme";
import "uplot/dist/uPlot.min.css";
import "./styles.css";

takeKeyFromAddress();
applyTheme();

// A key that is refused and a name that is wrong do not get better by asking again.
const LATER = [0, 429, 502, 503, 504];

const client = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2000,
      retry: (count, error) =>
        error instanceof ApiError && LATER.includes(error.status) && count < 4,
      retryDelay: (count, error) =>
        error instanceof ApiError && error.retryAfter ? error.retryAfter * 1000 : 500 * 2 ** count,
    },
  },
});

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={client}>
        <App />
      </QueryClientProvider>
    </StrictMode>,
  );
}
