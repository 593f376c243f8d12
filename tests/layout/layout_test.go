// Package layout keeps the packages apart: which may import what, and how long a
// file may be.
package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "edgepolicy.io/edgepolicyd"
	daemon = module + "/cmd/edgepolicyd"
)

// listed is what go list says of a package.
type listed struct {
	ImportPath string
	Imports    []string // of its own files, without tests
	Deps       []string // all of them, of all they import too
}

func (p listed) ours() bool {
	return p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/")
}

// packages lists packages of the module and all that they depend on, as built
// for a gateway.
func packages(t *testing.T, patterns ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Imports,Deps"}, patterns...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// within says whether a package is path or below it.
func within(pkg, path string) bool { return pkg == path || strings.HasPrefix(pkg, path+"/") }

// TestPure: the packages in the middle know neither kernel nor network nor API,
// however indirectly.
func TestPure(t *testing.T) {
	pure := []string{module + "/internal/inventory", module + "/internal/policy", module + "/internal/ruleset"}
	forbidden := []string{
		"net/http", "os/exec", "os/signal", "k8s.io/client-go", "github.com/google/nftables",
		"github.com/mdlayher", "github.com/ti-mo", "github.com/fsnotify/fsnotify",
	}
	for _, p := range packages(t, pure...) {
		if !slices.Contains(pure, p.ImportPath) {
			continue
		}
		for _, d := range p.Deps {
			if slices.ContainsFunc(forbidden, func(f string) bool { return within(d, f) }) {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}

// TestDaemon: what is linked into the daemon. A package that it uses runs no
// program, so that none that is missing can stop it enforcing.
func TestDaemon(t *testing.T) {
	for _, p := range packages(t, daemon) {
		for _, f := range []string{"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers", "k8s.io/client-go/rest", "k8s.io/client-go/tools/cache", "k8s.io/client-go/tools/clientcmd", module + "/internal/lab", module + "/tests", "testing"} {
			if within(p.ImportPath, f) {
				t.Errorf("the daemon links %s", p.ImportPath)
			}
		}
		if p.ours() && slices.Contains(p.Imports, "os/exec") {
			t.Errorf("%s imports os/exec", p.ImportPath)
		}
	}
}

// only lists the imports that one package alone may have.
var only = map[string]string{
	"github.com/google/nftables": module + "/internal/nft",
	"k8s.io/client-go":           module + "/internal/source/api",
	"github.com/spf13/cobra":     daemon,
	"gopkg.in/yaml.v3":           module + "/internal/manifest",
}

func TestOnlyImporters(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t, module+"/cmd/...", module+"/internal/...") {
		if !p.ours() {
			continue
		}
		for _, i := range p.Imports {
			for path, owner := range only {
				if within(i, path) {
					seen[path] = true
					if p.ImportPath != owner {
						t.Errorf("%s imports %s: only %s may", p.ImportPath, i, owner)
					}
				}
			}
		}
		if p.ImportPath == module+"/internal/inventory" {
			for _, i := range p.Imports {
				if within(i, module) {
					t.Errorf("inventory imports %s", i)
				}
			}
		}
	}
	for path, owner := range only {
		if !seen[path] {
			t.Errorf("nobody imports %s, not even %s: this table is out of date", path, owner)
		}
	}
}

// maxLines is how long a file may be, tests aside: as much as one subject takes.
const maxLines = 500

func TestFileLength(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && slices.Contains([]string{".git", "build", "dist", "testdata"}, e.Name()) {
			return fs.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if n := bytes.Count(data, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, %d are allowed: which part is a subject of its own?", filepath.Clean(path), n, maxLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files found", files)
	}
}
