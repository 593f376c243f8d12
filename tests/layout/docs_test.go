package layout

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/config"
	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// root is the repository, from here.
const root = "../.."

// glob gives the files of the repository that match any of the patterns.
func glob(t *testing.T, patterns ...string) []string {
	t.Helper()
	var all []string
	for _, p := range patterns {
		files, err := filepath.Glob(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 0 {
			t.Fatalf("there is no %s", p)
		}
		all = append(all, files...)
	}
	return all
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPresetsAreValid: what is copied to a gateway is not refused there, nor warned of.
func TestPresetsAreValid(t *testing.T) {
	for _, file := range glob(t, "configs/presets/*.yaml") {
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
		if _, found := config.Parse(file, []byte(read(t, file))); len(found) > 0 {
			t.Errorf("%v", found)
		}
	}
}

func TestExamplesAreValid(t *testing.T) {
	for _, file := range glob(t, "configs/examples/*.yaml") {
		f := manifest.Decode("directory", file, []byte(read(t, file)))
		if len(f.Documents) == 0 {
			t.Errorf("%s holds nothing", file)
		}
		for _, d := range f.Diagnostics {
			t.Error(d)
		}
	}
}

// block is a piece of YAML in a document.
type block struct {
	text string
	line int
}

// blocks gives the indented pieces of a document that begin with one of the words,
// without their indentation.
func blocks(text string, words ...string) (all []block) {
	lines := append(strings.Split(text, "\n"), "end")
	for i := 1; i < len(lines); i++ {
		margin := lines[i][:len(lines[i])-len(strings.TrimLeft(lines[i], " "))]
		word, _, _ := strings.Cut(strings.TrimLeft(lines[i], " "), ":")
		if len(margin) < 4 || lines[i-1] != "" || !slices.Contains(words, word) {
			continue
		}
		b := block{line: i + 1}
		for ; lines[i] == "" || strings.HasPrefix(lines[i], margin); i++ {
			b.text += strings.TrimPrefix(lines[i], margin) + "\n"
		}
		all = append(all, b)
		i-- // it may be the empty line before the next
	}
	return all
}

// TestDocumentedYAMLIsValid: what is written in the documents can be copied.
func TestDocumentedYAMLIsValid(t *testing.T) {
	var keys []string // of the configuration, its outermost
	for _, e := range config.Reference() {
		key, _, _ := strings.Cut(e.Key, ".")
		keys = append(keys, key)
	}
	policies, settings := 0, 0
	for _, file := range glob(t, "README.md", "docs/*.md") {
		text := read(t, file)
		for _, b := range blocks(text, "apiVersion") {
			policies++
			f := manifest.Decode("directory", file, []byte(strings.Repeat("\n", b.line-1)+b.text))
			for _, d := range f.Diagnostics {
				if d.Severity == manifest.Error {
					t.Error(d)
				}
			}
		}
		for _, b := range blocks(text, keys...) {
			settings++
			_, found := config.Parse(file, []byte(strings.Repeat("\n", b.line-1)+b.text))
			for _, d := range found {
				t.Error(d)
			}
		}
	}
	if policies < 10 || settings < 2 {
		t.Errorf("only %d manifests and %d pieces of configuration were found: are they still indented by four?", policies, settings)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors gives the names by which a document's headings are linked.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		all[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return all
}

// TestLinksLeadSomewhere: relative links between documents, to files and headings.
func TestLinksLeadSomewhere(t *testing.T) {
	for _, file := range glob(t, "*.md", "docs/*.md") {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, ":") {
				continue // elsewhere
			}
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: (%s): %v", file, m[1], err)
				continue
			}
			if anchor != "" && !anchors(read(t, path))[anchor] {
				t.Errorf("%s: (%s): there is no such heading", file, m[1])
			}
		}
	}
}
