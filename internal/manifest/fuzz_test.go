package manifest

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/apimachinery/pkg/util/validation"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// FuzzDecode: no input panics; what is valid is read back from its canonical
// form; what is not valid says why; nothing printed can move a terminal's cursor.
func FuzzDecode(f *testing.F) {
	names, _ := filepath.Glob("testdata/golden/*.txtar")
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			f.Add(file.Data)
		}
	}
	if cases, err := os.ReadFile("testdata/api-np-validation.jsonl"); err != nil {
		f.Fatal(err)
	} else {
		f.Add(cases[:4000])
	}
	for _, seed := range []string{
		"a: &a [*a]", "apiVersion: v1\nkind: List\nitems: &a [*a]", "? {a: b}\n: c", "\xff\xfe{", "{\"\\ud83d\\ude00\": \"\\ud83d\"}",
		"apiVersion: v1\nkind: Pod\nmetadata: &m {name: a, labels: {<<: *m}}", "!!binary x", "--- |\n a\n--- >\n b\n...",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := Decode("directory", "f.yaml", data)
		if !file.Parsed && (len(file.Documents) > 0 || len(file.Diagnostics) != 1) {
			t.Fatalf("not parsed, yet %+v", file)
		}
		errors := 0
		for _, d := range append(Lint(snapshot([]File{file}), inventory.DefaultOptions(), []File{file}), file.Diagnostics...) {
			if d.Severity == Error {
				errors++
			}
			for _, r := range d.String() {
				if !strconv.IsPrint(r) {
					t.Fatalf("%q holds %q", d.String(), r)
				}
			}
		}
		for _, doc := range file.Documents {
			if doc.Valid {
				wantRoundTrip(t, doc)
			} else if errors == 0 {
				t.Fatalf("%+v is invalid without an error", doc)
			}
		}
	})
}

// FuzzPrefix holds parsePrefix against the API server's own reading.
func FuzzPrefix(f *testing.F) {
	for _, seed := range []string{"10.1.2.3/8", "010.0.0.0/08", "::ffff:10.0.0.0/104", "::ffff:010.0.0.0/104", "fe80::%eth0/64", "FD00::/64", "1.2.3/8", "1::2::3/8", "::1.2.3.4/96", "0:0:0:0:0:0:0:0/0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, _, ok := parsePrefix(text)
		api := validation.IsValidCIDRForLegacyField(nil, text, false, nil)
		if ok != (len(api) == 0) {
			t.Fatalf("%q: %v, the API server: %v", text, ok, api)
		}
		if ok && p != p.Masked() {
			t.Fatalf("%q: %v is not masked", text, p)
		}
	})
}
