package state

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// twice is one pod as two sources know it, with a policy that it carries.
func twice(t *testing.T, boot string) State {
	yaml := "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}, uid: u1}\n" +
		"spec: {nodeName: here, initContainers: [{name: s, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}], containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}\n" +
		"status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}]}\n---\n" +
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web.deny}\nspec: {podSelector: {}}\n"
	s := State{Boot: boot, Sources: map[string]inventory.Objects{}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")}}
	for _, source := range []string{"directory", "kubelet", "api"} {
		s.Sources[source] = objects(t, source, "", yaml)
		s.Sources[source].Policies[0].Origin.Pod = "default/web"
	}
	return s
}

// write puts a file with a payload and a right checksum into a directory.
func write(t *testing.T, dir, payload string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, fileName), append(fmt.Appendf(nil, "%s %d %s\n", magic, version, checksum(version, []byte(payload))), payload...), 0o600))
}

// What was known in this boot comes back whole.
func TestSameBoot(t *testing.T) {
	if Boot() == "" || strings.TrimSpace(Boot()) != Boot() {
		t.Fatalf("the boot is %q", Boot())
	}
	dir, want := t.TempDir(), twice(t, Boot())
	save(t, dir, want)
	saved, err := New(dir, quiet).Load()
	must(t, err)
	if saved.Boot != Boot() || !reflect.DeepEqual(saved.Ranges, want.Ranges) || saved.Empty() {
		t.Errorf("boot %q, ranges %v", saved.Boot, saved.Ranges)
	}
	if got := load(t, dir); !reflect.DeepEqual(got.Sources, want.Sources) {
		t.Errorf("loaded %+v\nsaved %+v", got.Sources, want.Sources)
	}
}

// Pods' addresses of another boot are not believed, but for the operator's word; all
// else is.
func TestAnotherBoot(t *testing.T) {
	for _, boot := range []string{"2d9bd8a4-0000-4000-8000-000000000000", ""} {
		dir, want := t.TempDir(), twice(t, boot)
		save(t, dir, want)
		saved, err := New(dir, quiet).Load()
		must(t, err)
		if saved.Boot != boot || !reflect.DeepEqual(saved.Ranges, want.Ranges) {
			t.Errorf("boot %q: boot %q, ranges %v", boot, saved.Boot, saved.Ranges)
		}
		for source, before := range want.Sources {
			o, err := saved.Objects(source)
			must(t, err)
			p, old := o.Pods[0], before.Pods[0]
			if source == "directory" {
				if !reflect.DeepEqual(o, before) {
					t.Errorf("boot %q: the directory's: %+v", boot, o)
				}
				continue
			}
			if len(p.Addresses) > 0 || bytes.Contains(p.JSON, []byte("10.0.0.1")) {
				t.Errorf("boot %q: %s's pod has addresses: %s", boot, source, p.JSON)
			}
			if p.UID != "u1" || p.Node != "here" || p.Phase != old.Phase || !reflect.DeepEqual(p.Labels, old.Labels) || len(p.Ports) != 2 || p.Origin != old.Origin {
				t.Errorf("boot %q: %s's pod is %+v", boot, source, p)
			}
			if !reflect.DeepEqual(o.Policies, before.Policies) {
				t.Errorf("boot %q: %s's policies are %+v", boot, source, o.Policies)
			}
			// As it would be if it had been read like that: saved again, it is the same.
			again, err := encode(State{Boot: Boot(), Sources: map[string]inventory.Objects{source: o}})
			must(t, err)
			back, err := decode(again)
			must(t, err)
			if third, err := back.Objects(source); err != nil || third.Pods[0].Addresses != nil || third.Pods[0].UID != p.UID || len(third.Pods[0].Ports) != 2 {
				t.Errorf("boot %q: saved again: %+v, %v", boot, third, err)
			}
		}
	}
}

// Each boot is a change that is written, and no other is.
func TestAnotherBootIsAChange(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, twice(t, "one"))
	s := New(dir, quiet)
	_, err := s.Load()
	must(t, err)
	for i, c := range []struct {
		boot  string
		wrote bool
	}{{"one", false}, {"two", true}, {"two", false}} {
		if wrote, err := s.Save(twice(t, c.boot)); err != nil || wrote != c.wrote {
			t.Errorf("%d: Save = %v, %v", i, wrote, err)
		}
	}
	other := twice(t, "two")
	other.Ranges = other.Ranges[:1]
	if wrote, err := s.Save(other); err != nil || !wrote {
		t.Errorf("other ranges: Save = %v, %v", wrote, err)
	}
}

// Files from before boots and ranges were saved are read still; nobody knows in which
// boot they were written.
func TestOlderFiles(t *testing.T) {
	dir := t.TempDir()
	data, err := encode(twice(t, Boot()))
	must(t, err)
	_, payload, _ := bytes.Cut(data, []byte("\n"))
	at := bytes.Index(payload, []byte(`"sources"`))
	write(t, dir, "{"+string(payload[at:]))
	saved, err := New(dir, quiet).Load()
	must(t, err)
	if saved.Boot != "" || saved.Ranges != nil || saved.Empty() {
		t.Fatalf("boot %q, ranges %v", saved.Boot, saved.Ranges)
	}
	for source, addresses := range map[string]int{"directory": 2, "kubelet": 0, "api": 0} {
		if o, err := saved.Objects(source); err != nil || len(o.Pods) != 1 || len(o.Policies) != 1 || len(o.Pods[0].Addresses) != addresses {
			t.Errorf("%s: %+v, %v", source, o, err)
		}
	}
}

// What can't have been saved is damage, and set aside.
func TestDamagedBootAndRanges(t *testing.T) {
	for _, payload := range []string{
		`{"boot":1,"sources":{}}`, `{"ranges":["10.42.0.0"],"sources":{}}`, `{"ranges":["10.42.0.0/33"],"sources":{}}`,
		`{"ranges":[""],"sources":{}}`, `{"ranges":"10.0.0.0/8","sources":{}}`,
	} {
		dir := t.TempDir()
		write(t, dir, payload)
		saved, err := New(dir, quiet).Load()
		if !errors.Is(err, ErrDamaged) || !saved.Empty() || saved.Ranges != nil || names(t, dir) != damagedName {
			t.Errorf("%s: %v, %v, files %s", payload, saved, err, names(t, dir))
		}
	}
}
