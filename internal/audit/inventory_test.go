package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

func policies(n int) []*inventory.Policy {
	list := make([]*inventory.Policy, n)
	for i := range list {
		list[i] = &inventory.Policy{Audit: i%3 == 0, Head: inventory.Head{
			Key:    inventory.Key{Namespace: "default", Name: fmt.Sprintf("p%d", i)},
			Origin: inventory.Origin{Source: "directory", File: "/etc/edgepolicy.d/p.yaml", Line: i + 1},
			JSON:   fmt.Appendf(nil, `{"i":%d}`, i),
		}}
	}
	return list
}

// slow is a standard error that takes its time, so that a long inventory has to wait.
type slow struct{ w io.Writer }

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(10 * time.Microsecond)
	return s.w.Write(p)
}

// TestInventoryIsComplete: all lines are there, however many, and what they say can be
// checked as the documentation describes it.
func TestInventoryIsComplete(t *testing.T) {
	for _, n := range []int{0, 3, 10_000} {
		stderr := &buffer{}
		log, h := open(t, "json", slog.LevelInfo, slow{stderr}, "")
		list := policies(n)
		Inventory(t.Context(), log.With("x", 1), &inventory.Options{}, list, time.Date(2026, 3, 1, 13, 0, 0, 0, time.FixedZone("CET", 3600)))
		PolicyChanged.Log(log, "newer")
		within(t, "the inventory is complete", func() bool { return strings.Contains(stderr.String(), "inventory-complete") })
		if err := h.Close(limit); err != nil {
			t.Fatal(err)
		}
		type message struct {
			Event, Policy, Hash, Enforcement, Source, File, Inventory, Msg string
			Count, Total                                                   int
		}
		var order, lines []string
		var last message
		for d := json.NewDecoder(strings.NewReader(stderr.String())); ; {
			var m message
			if err := d.Decode(&m); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if m.Event != "inventory" {
				order = append(order, m.Event)
			}
			if m.Event == "policy-changed" {
				continue
			}
			if m.Inventory != "2026-03-01T12:00:00Z" {
				t.Fatalf("%+v is of another inventory", m)
			}
			if last = m; m.Event != "inventory" {
				continue
			}
			p := list[len(lines)]
			sum := sha256.Sum256(p.JSON)
			if m.Policy != p.Key.String() || m.Hash != hex.EncodeToString(sum[:]) || (m.Enforcement == "audit") != p.Audit || m.Source != "directory" ||
				m.File != p.Origin.String() || m.Total != n || !strings.Contains(m.Msg, m.Hash) || !strings.Contains(m.Msg, m.Policy) {
				t.Fatalf("%+v does not describe %+v", m, p.Head)
			}
			lines = append(lines, m.Policy+" "+m.Hash+" "+m.Enforcement+"\n")
		}
		slices.Sort(lines)
		sum := sha256.Sum256([]byte(strings.Join(lines, "")))
		if len(lines) != n || last.Event != "inventory-complete" || last.Count != n || last.Hash != hex.EncodeToString(sum[:]) {
			t.Errorf("%d lines of %d policies, and at the end %+v", len(lines), n, last)
		}
		if order[0] != "inventory-started" || len(order) != 3 {
			t.Errorf("the order of the other messages: %q", order)
		}
	}
}

// TestOtherHandlers: an inventory needs no Handler of this package.
func TestOtherHandlers(t *testing.T) {
	b := &buffer{}
	Inventory(t.Context(), slog.New(slog.NewTextHandler(b, nil)), &inventory.Options{Audit: true}, policies(100), time.Now())
	within(t, "the inventory is complete", func() bool { return strings.Contains(b.String(), "inventory-complete") })
	if got := bytes.Count([]byte(b.String()), []byte("enforcement=audit")); got != 100 {
		t.Errorf("%d of 100 policies are on trial", got)
	}
}
