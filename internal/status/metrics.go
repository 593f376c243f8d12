package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/net/netutil"
)

// metrics answers Prometheus: all of it, or that it failed.
func metrics(w http.ResponseWriter, d Daemon) {
	var b bytes.Buffer
	if err := d.Metrics(&b); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(b.Bytes()) // the caller may be gone
}

// maxScrapers is how many may ask at once; others wait.
const maxScrapers = 4

// ServeMetrics answers GET /metrics, and nothing else, on a loopback address until
// ctx ends, and then returns nil. Every user of the gateway, and every pod that has its
// network, may read what is there: names of pods and numbers.
func ServeMetrics(ctx context.Context, address string, d Daemon, log *slog.Logger) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { metrics(w, d) })
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: readTime,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false) // any local user may connect: nobody gets to hold what the daemon needs
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, maxScrapers)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
