package enforce

import (
	"testing"
	"time"
)

// A moment is told as the clock stands now, also if the clock was set after it; and
// as it was, if not.
func TestByTheClock(t *testing.T) {
	now := time.Now()
	if got := byTheClock(now); got != now {
		t.Errorf("the clock was not set, but %v became %v", now, got)
	}
	if got := byTheClock(time.Time{}); !got.IsZero() {
		t.Errorf("no time became %v", got)
	}
	// Saved without a monotonic reading: it is what it is.
	saved := now.Round(0).Add(-time.Hour)
	if got := byTheClock(saved); !got.Equal(saved) {
		t.Errorf("%v became %v", saved, got)
	}
}
