package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"time"
)

// Gateways have little memory and much time. While the daemon starts, the
// collector waits until the runtime has startLimit bytes from the kernel; from
// then on it runs more often than Go's default has it. Measured by `make bench`.
const (
	startLimit = 20 << 20
	gcPercent  = 25
)

// startMemory lets the start be quick, until ctx ends, and gives back then what the
// start needed and the rest of the daemon's life does not. A gateway that needs more
// than the limit gets it: else the collector would run all the time.
func startMemory(ctx context.Context) {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(startLimit)
	var m runtime.MemStats
	for limit, runs := int64(startLimit), uint32(0); ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		runtime.ReadMemStats(&m)
		if m.NumGC > runs+4 {
			limit += limit / 2
			debug.SetMemoryLimit(limit)
		}
		runs = m.NumGC
	}
	debug.SetMemoryLimit(math.MaxInt64)
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
}
