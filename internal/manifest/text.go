package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"

	"gopkg.in/yaml.v3"
)

// Limits of one file, far above what a gateway needs, so that a file made to
// exhaust the daemon is refused instead.
const (
	maxFileSize  = 4 << 20 // bytes
	maxDocuments = 20000   // YAML documents and items of Lists together
	maxVisited   = 500000  // YAML values of one object, aliases expanded
)

// parse reads the YAML of a file into one node for each document, empty ones
// left out.
func parse(file string, data []byte) ([]*yaml.Node, *Diagnostic) {
	refuse := func(line int, message string) ([]*yaml.Node, *Diagnostic) {
		return nil, &Diagnostic{File: file, Line: line, Message: message}
	}
	if len(data) > maxFileSize {
		return refuse(0, fmt.Sprintf("%d bytes: a file may have at most %d; split it", len(data), maxFileSize))
	}
	var roots []*yaml.Node
	for dec := yaml.NewDecoder(bytes.NewReader(jsonAsYAML(data))); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			return refuse(explain(err, data))
		}
		root := &doc
		if doc.Kind == yaml.DocumentNode && len(doc.Content) > 0 {
			root = doc.Content[0]
		}
		if root.Kind == 0 || isNull(root) {
			continue
		}
		if roots = append(roots, root); len(roots) > maxDocuments {
			return refuse(root.Line, fmt.Sprintf("more than %d documents in one file; split it", maxDocuments))
		}
	}
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

var jsonEscape = regexp.MustCompile(`\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)`)

// jsonAsYAML rewrites the one JSON escape that YAML lacks: characters beyond
// U+FFFF as two surrogates, which many writers use in annotations. Lines stay.
func jsonAsYAML(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\u`)) || !json.Valid(data) {
		return data
	}
	return jsonEscape.ReplaceAllFunc(data, func(e []byte) []byte {
		unit := func(hex []byte) rune {
			v, _ := strconv.ParseUint(string(hex), 16, 16)
			return rune(v)
		}
		switch len(e) {
		case 12:
			return fmt.Appendf(nil, `\U%08X`, utf16.DecodeRune(unit(e[2:6]), unit(e[8:12])))
		case 6:
			return []byte(`\uFFFD`) // a lone surrogate, as encoding/json reads it
		}
		return e
	})
}

var (
	parserError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	bareWord    = regexp.MustCompile(`^ *((?:- +)*)([A-Za-z]+) *(?:#.*)?$`)
)

// remedies say for the parser's commoner complaints what would be right.
var remedies = []struct{ complaint, remedy string }{
	{"mapping values are not allowed", "a key may not stand here: check the indentation and the line before"},
	{"could not find expected ':'", "a key needs a colon and a space after it"},
	{"did not find expected key", "check the indentation: keys of one mapping start in the same column"},
	{"did not find expected '-' indicator", "check the indentation: entries of one list start with - in the same column"},
	{"found character that cannot start any token", "indent with spaces, not tabs, and quote values that start with @, ` or %"},
	{"found a tab character", "indent with spaces, not tabs"},
	{"did not find expected ',' or", "a bracket or brace is not closed, or a comma is missing"},
	{"found unexpected end of stream", "a quote is not closed"},
	{"unknown anchor", "an alias (*name) needs its anchor (&name) earlier in the same document; quote a value that starts with *"},
	{"control characters are not allowed", "the file holds binary data"},
	{"invalid leading UTF-8", "the file must be UTF-8 text"},
	{"exceeded max depth", "nested deeper than any manifest"},
}

// explain makes a parser error readable: the line it gives (1 where it gives
// none: yaml.v3 leaves out the first), and the colon that is missing in a line
// before it, the commonest mistake.
func explain(err error, data []byte) (line int, message string) {
	m := parserError.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, "not YAML: " + err.Error()
	}
	line = 1
	if m[1] != "" {
		line, _ = strconv.Atoi(m[1])
	}
	message = "not YAML: " + m[2]
	for _, r := range remedies {
		if strings.HasPrefix(m[2], r.complaint) {
			message += ": " + r.remedy
			break
		}
	}
	return line, message + missingColon(data, line)
}

// missingColon looks from two lines before the parser's on for a bare word where
// a key should be: "- to" with deeper lines after it, or "spec" among keys. With
// some mistakes the parser gives the line where the mapping around it starts.
func missingColon(data []byte, line int) string {
	lines := strings.Split(string(data), "\n")
	for i := max(0, line-3); i < len(lines)-1 && !(i >= line && strings.HasPrefix(lines[i], "---")); i++ {
		m := bareWord.FindStringSubmatch(strings.TrimRight(lines[i], "\r"))
		if m == nil || m[2] == "true" || m[2] == "false" {
			continue
		}
		deeper := indentation(lines[i+1]) - indentation(lines[i])
		if deeper > 0 || (deeper == 0 && m[1] == "") {
			return fmt.Sprintf("; line %d says %q: a colon is missing, write %q", i+1, m[1]+m[2], m[1]+m[2]+":")
		}
	}
	return ""
}

func indentation(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
