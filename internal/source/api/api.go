// Package api follows policies, namespaces and pods on a Kubernetes API server,
// or on a local cache of one.
//
// What always holds: an object vanishes only by a DELETED event or by a complete
// list that lacks it; whatever else a server answers, or does not, leaves what is
// known in force. The three resources are followed apart from each other, so that
// one that can't be read stops no other.
//
// Why not client-go's Reflector: with it and rest.RESTClient the daemon would be
// 16.1 MB on arm64, beyond what a gateway may spend; with client-go's transport
// alone (TLS, rotated certificates and tokens, HTTP/2 pings) it is 3.5 MB less.
// And it keeps a list whole while it is read, watches for five minutes at least
// whether the server answers or not, and never falls back to polling.
//
// How a dead watch is told from an idle cluster, by one rule: a watch must give a
// sign of life, an event or a bookmark, which API servers send every minute and
// before a watch's time is over. One that was silent for its time is followed by
// a list, and after a few of them the resource is polled. Over HTTP/2, pings
// (30 s and 15 s, client-go's) break a dead connection, so a watch may be long
// there; over HTTP/1.1, mostly a cache on this machine, it is short instead. Either
// way a network that is gone is noticed within 60 s.
package api

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/source"
)

// Name is the name of the source.
const Name = "api"

// Config says which server is asked, and which pods are read.
type Config struct {
	// Kubeconfig is the path of a kubeconfig file: its current context is used. It may
	// come later, and is read again when it changes.
	Kubeconfig string
	// Server is the URL of a server that asks for no credentials, instead of
	// Kubeconfig: http://127.0.0.1:10355.
	Server string
	// AllPods: the pods of all nodes are read, not only those of NodeName.
	AllPods bool
	// NodeName is the gateway's name in spec.nodeName.
	NodeName string
}

// Source is the API source.
type Source struct {
	config    Config
	conn      connection
	last      func() inventory.Objects
	log       *slog.Logger
	times     times
	changed   chan struct{} // something that a report says may have changed
	confirmed atomic.Pointer[time.Time]

	mu         sync.Mutex
	resources  []*resource // the slice does not change
	remembered bool        // last gave something
	report     source.Report
}

// New gives the source for a server. last gives what was known when the daemon
// ended, from the saved state; it is called once at most, by Known, and may be nil.
// Nothing is read or asked yet.
func New(config Config, last func() inventory.Objects, log *slog.Logger) (*Source, error) {
	switch {
	case (config.Kubeconfig == "") == (config.Server == ""):
		return nil, errors.New("api: give either a kubeconfig or a server, not both")
	case config.NodeName == "":
		return nil, errors.New("api: the name of this node is needed to tell its pods from others: set nodeName")
	}
	s := &Source{
		config: config, last: last, log: log, times: defaults, changed: make(chan struct{}, 1),
		conn: connection{kubeconfig: config.Kubeconfig, server: config.Server},
		resources: []*resource{
			newResource("networkpolicies", inventory.KindPolicy, "apis/networking.k8s.io/v1/networkpolicies"),
			newResource("namespaces", inventory.KindNamespace, "api/v1/namespaces"),
			newResource("pods", inventory.KindPod, "api/v1/pods"),
		},
	}
	if config.Server != "" {
		if _, err := s.conn.get(); err != nil {
			return nil, err
		}
	}
	if !config.AllPods {
		s.resources[2].selector = "spec.nodeName=" + config.NodeName
	}
	return s, nil
}

// Name gives Name; see source.Source.
func (s *Source) Name() string { return Name }

// Known gives what was known when the daemon ended.
func (s *Source) Known(context.Context) (source.Report, error) {
	if s.last != nil {
		s.remember(s.last())
		s.last = nil
	}
	return s.assemble(), nil
}

// Confirmed says when all three resources were last known to be current; zero:
// not since the daemon started.
func (s *Source) Confirmed() time.Time {
	if t := s.confirmed.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// Run follows the server until ctx ends; see source.Source. The first report
// waits until all resources were read, so that policies are not taken for all
// there is while the namespaces that they select are still being read.
func (s *Source) Run(ctx context.Context, reports chan<- source.Report) error {
	var followers sync.WaitGroup
	defer followers.Wait()
	for _, r := range s.resources {
		followers.Go(func() { s.follow(ctx, r) })
	}
	started := time.Now()
	timer := time.NewTimer(s.times.start)
	defer timer.Stop()
	ready := false
	var sent, report source.Report
	for {
		var out chan<- source.Report
		if !report.Time.Equal(sent.Time) {
			out = reports
		}
		select {
		case <-ctx.Done():
			return nil
		case out <- report:
			sent = report
		case <-s.changed:
			if ready {
				timer.Reset(s.times.gather)
				if !wait(ctx, timer.C) {
					return nil
				}
				report = s.assemble()
			}
		case <-timer.C:
		}
		if !ready && s.ready(time.Since(started) >= s.times.start) {
			ready, report = true, s.assemble()
		}
	}
}

func wait(ctx context.Context, c <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}

// Refresh reads all resources now. What is not read within a second is left to
// Run.
func (s *Source) Refresh(ctx context.Context) (source.Report, error) {
	short, cancel := context.WithTimeout(ctx, s.times.refresh)
	defer cancel()
	var lists sync.WaitGroup
	for _, r := range s.resources {
		lists.Go(func() {
			if s.list(short, r) != nil {
				r.nudge()
			}
		})
	}
	lists.Wait()
	return s.assemble(), ctx.Err()
}

// touch says that a report may have changed.
func (s *Source) touch() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
