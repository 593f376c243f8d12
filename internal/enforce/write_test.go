package enforce

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/state"
)

// The state is written at once after a quiet time, and then, whatever changes, at
// most every 5 s; what is newest at the end is written too.
func TestStateIsWrittenRarely(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		e := New(Config{Table: "t", Options: inventory.DefaultOptions(), Log: log, Store: state.New(dir, log)})
		done := make(chan struct{})
		go func() { e.writeState(); close(done) }()
		writes, last := 0, ""
		look := func() {
			synctest.Wait()
			if data, _ := os.ReadFile(filepath.Join(dir, "state")); string(data) != last {
				writes, last = writes+1, string(data)
			}
		}
		for i := range 230 { // 23 s of a change every 100 ms
			s := state.State{Boot: "b", Ranges: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)}}
			select {
			case <-e.toSave:
			default:
			}
			e.toSave <- s
			look()
			if i == 0 && writes != 1 {
				t.Error("the first change was not written at once")
			}
			time.Sleep(100 * time.Millisecond)
			look()
		}
		if writes != 5 { // at 0, 5, 10, 15 and 20 s
			t.Errorf("%d writes in 23 s", writes)
		}
		close(e.toSave)
		<-done
		if look(); writes != 6 {
			t.Errorf("the newest was not written at the end: %d writes", writes)
		}
	})
}
