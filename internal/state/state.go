// Package state keeps the last good input on disk, so that a gateway that
// starts without its sources enforces what it did before (S9).
//
// What always holds: the file is either the whole of what was saved last or the
// whole of what was saved before, also after a power cut at any moment. What is
// read is believed only if its checksum is right and every object in it passes
// the same validation as if it had just been written by hand. A damaged file is
// set aside and never stops the daemon.
package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// State is what each source knows, by the source's name, to be saved.
type State struct {
	Boot    string         // the boot in which it was known
	Ranges  []netip.Prefix // of pods' addresses that are held (see enforce)
	Sources map[string]inventory.Objects
}

// Saved is what a sound file holds. It is not decoded until it is asked for: a
// gateway whose sources are in order never needs it, and decoding takes as long
// as reading them does.
type Saved struct {
	Boot    string
	Ranges  []netip.Prefix
	sources map[string][]Object
}

// Boot names the boot of the machine that is running: boot_id of random(4). Empty if
// the kernel does not tell.
func Boot() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// version is that of the file format. A later version must keep the first line
// as it is (see encode), so that this one can tell it from a damaged file.
const version = 1

// maxSize bounds the file, in bytes: no gateway has this much, and a damaged
// file must not eat the gateway's memory.
const maxSize = 64 << 20

// ErrDamaged says that a state file can't be trusted: it is not what was
// written.
var ErrDamaged = errors.New("damaged")

// ErrNewer says that a state file is sound but was written by a later version of
// the daemon.
var ErrNewer = errors.New("written by a later version of edgepolicyd")

// Object is one object as it is saved, and as the daemon gives it to the command
// line.
type Object struct {
	Kind   inventory.Kind   `json:"kind"`
	Origin inventory.Origin `json:"origin"`
	Object json.RawMessage  `json:"object"` // inventory.Head.JSON
}

// body is what follows the first line.
type body struct {
	Boot    string              `json:"boot,omitempty"`
	Ranges  []netip.Prefix      `json:"ranges,omitempty"`
	Sources map[string][]Object `json:"sources"`
}

const magic = "edgepolicyd-state"

// List makes what Restore reads.
func List(o inventory.Objects) []Object {
	list := make([]Object, 0, len(o.Namespaces)+len(o.Pods)+len(o.Policies))
	for _, n := range o.Namespaces {
		list = append(list, Object{inventory.KindNamespace, n.Origin, n.JSON})
	}
	for _, p := range o.Pods {
		list = append(list, Object{inventory.KindPod, p.Origin, p.JSON})
	}
	for _, p := range o.Policies {
		list = append(list, Object{inventory.KindPolicy, p.Origin, p.JSON})
	}
	return list
}

// Restore decodes and validates objects. The error names those that are left out,
// as they are not valid any more: a later daemon may validate more strictly.
func Restore(list []Object) (inventory.Objects, error) {
	var objects inventory.Objects
	var errs []error
	for _, o := range list {
		if err := o.add(&objects); err != nil {
			errs = append(errs, fmt.Errorf("saved %s of %s is left out: %w", o.Kind, o.Origin, err))
		}
	}
	return objects, errors.Join(errs...)
}

// encode makes the content of the file. The first line is
//
//	edgepolicyd-state VERSION SHA256
//
// where the checksum is that of "edgepolicyd-state VERSION\n" and all that
// follows the first line: a damaged version number is not a later version.
func encode(s State) ([]byte, error) {
	b := body{Boot: s.Boot, Ranges: s.Ranges, Sources: map[string][]Object{}}
	for name, o := range s.Sources {
		b.Sources[name] = List(o)
	}
	payload, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	payload = append(payload, '\n')
	return append(fmt.Appendf(nil, "%s %d %s\n", magic, version, checksum(version, payload)), payload...), nil
}

func checksum(version int, payload []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", magic, version)
	h.Write(payload)
	return hex.EncodeToString(h.Sum(nil))
}

// decode reads the content of a file. The error is ErrDamaged or ErrNewer.
func decode(data []byte) (Saved, error) {
	first, payload, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Split(first, []byte(" "))
	if len(fields) != 3 || string(fields[0]) != magic {
		return Saved{}, fmt.Errorf("%w: its first line is not that of a state file", ErrDamaged)
	}
	v, err := strconv.Atoi(string(fields[1]))
	if err != nil || strconv.Itoa(v) != string(fields[1]) || v < 1 {
		return Saved{}, fmt.Errorf("%w: its version is %q", ErrDamaged, fields[1])
	}
	if checksum(v, payload) != string(fields[2]) {
		return Saved{}, fmt.Errorf("%w: its checksum does not match", ErrDamaged)
	}
	if v > version {
		return Saved{}, fmt.Errorf("%w: its version is %d, this daemon reads %d", ErrNewer, v, version)
	}
	var b body
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return Saved{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, r := range b.Ranges {
		if !r.IsValid() { // an empty text is read as one
			return Saved{}, fmt.Errorf("%w: one of its ranges is empty", ErrDamaged)
		}
	}
	return Saved{b.Boot, b.Ranges, b.Sources}, nil
}

// Empty says that nothing was saved, or nothing of it is sound.
func (s Saved) Empty() bool { return len(s.sources) == 0 }

// Objects gives what a source knew last; see Restore for the error. Addresses of
// pods that were known in another boot are left out, as others can have them by now;
// but a directory's are the operator's word.
func (s Saved) Objects(source string) (inventory.Objects, error) {
	objects, err := Restore(s.sources[source])
	if source == "directory" || s.Boot != "" && s.Boot == Boot() {
		return objects, err
	}
	for _, p := range objects.Pods {
		if len(p.Addresses) > 0 {
			p.Addresses = nil // nobody has seen the pod yet
			p.JSON = manifest.PodJSON(p)
		}
	}
	return objects, err
}

// add decodes and validates the object and appends it to those of its source.
// Its origin is what was saved, not its place in the state file.
func (o *Object) add(to *inventory.Objects) error {
	f := manifest.Decode(o.Origin.Source, o.Origin.File, o.Object)
	if len(f.Documents) != 1 || !f.Documents[0].Valid || f.Documents[0].Kind != o.Kind {
		for _, d := range f.Diagnostics {
			if d.Severity == manifest.Error {
				return errors.New(d.String())
			}
		}
		return fmt.Errorf("it is not one %s", o.Kind)
	}
	switch d := f.Documents[0]; {
	case d.Pod != nil:
		d.Pod.Origin = o.Origin
		to.Pods = append(to.Pods, d.Pod)
	case d.Namespace != nil:
		d.Namespace.Origin = o.Origin
		to.Namespaces = append(to.Namespaces, d.Namespace)
	case d.Policy != nil:
		d.Policy.Origin = o.Origin
		to.Policies = append(to.Policies, d.Policy)
	}
	return nil
}
