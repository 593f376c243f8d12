package status

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Who holds connections keeps neither the daemon's files nor, for long, Prometheus.
func TestMetricsWithConnectionsHeld(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- ServeMetrics(ctx, address, &fake{}, slog.New(slog.DiscardHandler)) }()
	for range maxScrapers + 2 {
		var c net.Conn
		for end := time.Now().Add(10 * time.Second); ; {
			if c, err = net.Dial("tcp", address); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	client := http.Client{Timeout: time.Minute}
	answer, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "edgepolicyd_up 1\n" || !strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%q, %v, %s", body, err, answer.Header)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
