package manifest

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// snapshot is what a directory of these files gives: the first of two objects
// counts.
func snapshot(files []File, gateway ...netip.Addr) *inventory.Snapshot {
	s := &inventory.Snapshot{Gateway: gateway}
	seen := map[string]bool{}
	for _, f := range files {
		for _, doc := range f.Documents {
			id := string(doc.Kind) + " " + doc.Key.String()
			if seen[id] || !doc.Valid {
				continue
			}
			seen[id] = true
			switch doc.Kind {
			case inventory.KindPod:
				s.Pods = append(s.Pods, doc.Pod)
			case inventory.KindNamespace:
				s.Namespaces = append(s.Namespaces, doc.Namespace)
			case inventory.KindPolicy:
				s.Policies = append(s.Policies, doc.Policy)
			}
		}
	}
	slices.SortFunc(s.Pods, func(a, b *inventory.Pod) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Namespaces, func(a, b *inventory.Namespace) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(s.Policies, func(a, b *inventory.Policy) int { return a.Key.Compare(b.Key) })
	return s
}

// TestGolden: each archive holds manifests, and under "want" what is made of
// them: the documents, then what Decode says, then what Lint says. A file
// "gateway" holds the gateway's addresses.
func TestGolden(t *testing.T) {
	names, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var want *txtar.File
			var files []File
			var gateway []netip.Addr
			var out strings.Builder
			for i, f := range archive.Files {
				switch f.Name {
				case "want":
					want = &archive.Files[i]
				case "gateway":
					for _, a := range strings.Fields(string(f.Data)) {
						gateway = append(gateway, netip.MustParseAddr(a))
					}
				default:
					d := Decode("directory", f.Name, f.Data)
					files = append(files, d)
					if !d.Parsed {
						fmt.Fprintf(&out, "%s: not parsed\n", f.Name)
					}
					for _, doc := range d.Documents {
						fmt.Fprintf(&out, "%s: %s %q valid=%v\n", doc.Origin, doc.Kind, doc.Key, doc.Valid)
					}
				}
			}
			for _, f := range files {
				printAll(&out, "", f.Diagnostics)
			}
			printAll(&out, "lint ", Lint(snapshot(files, gateway...), inventory.DefaultOptions(), files))
			switch {
			case *update && want == nil:
				archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(out.String())})
			case *update:
				want.Data = []byte(out.String())
			case want == nil || string(want.Data) != out.String():
				t.Errorf("got:\n%s\n(go test -update rewrites the file)", out.String())
			}
			if *update {
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func printAll(out *strings.Builder, stage string, ds []Diagnostic) {
	for _, d := range ds {
		fmt.Fprintf(out, "%s%s: %s\n", stage, d.Severity, d)
	}
}
