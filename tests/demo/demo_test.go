package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// TestDemo: what the demo shows is so, on both topologies.
func TestDemo(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Bridge, lab.Routed} {
		t.Run(kind.String(), func(t *testing.T) {
			var out bytes.Buffer
			if code := run(context.Background(), &out, kind); code != 0 {
				t.Fatalf("exit code %d:\n%s", code, out.String())
			}
			for _, want := range []string{"Before:", "After:", "$ edgepolicyd status", "chain in-default/broker {", "DEMO PASSED"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it does not show %q:\n%s", want, out.String())
				}
			}
			t.Log(out.String())
		})
	}
}

// TestMeasureComplains: the demo fails where the gateway does not do what it
// should.
func TestMeasureComplains(t *testing.T) {
	var out bytes.Buffer
	s := &show{ctx: context.Background(), out: &out, lab: lab.ForTest(t, lab.Topology{})}
	if err := s.gateway(); err != nil {
		t.Fatal(err)
	}
	err := s.measure(false, allowed)
	if err == nil || !strings.Contains(err.Error(), `bystander to broker:8181 is "yes", should be "no"`) {
		t.Errorf("without any filter: %v", err)
	}
	if strings.Contains(err.Error(), "publisher to broker:8181") {
		t.Errorf("what is allowed was complained of: %v", err)
	}
}
