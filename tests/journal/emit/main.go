// Emit logs one of every event, with every field, as a daemon would.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"edgepolicy.io/edgepolicyd/internal/audit"
)

func main() {
	h, err := audit.NewHandler("auto", slog.LevelInfo, os.Stderr, audit.JournalSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	log := slog.New(h)
	examples := map[string]string{}
	for _, f := range audit.Fields {
		examples[f.Key] = f.Example
	}
	for _, e := range audit.Events {
		var attrs []slog.Attr
		for _, key := range e.Fields {
			attrs = append(attrs, slog.String(key, examples[key]))
		}
		e.Log(log, "message of "+e.Name, attrs...)
	}
	log.Info("plain", "key", "a b", "lines", "one\ntwo", "bytes", "\x1b[2J\xff")
	log.Info("large", "value", strings.Repeat("0123456789", 100_000))
	if err := h.Close(time.Minute); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
