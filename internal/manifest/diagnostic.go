package manifest

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Severity tells a document that is rejected from one that is taken with a remark.
type Severity int

// An Error rejects the document it is about; a Warning does not.
const (
	Error Severity = iota
	Warning
)

// String gives "error" or "warning".
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText writes the severity as its name, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes; an unknown name is an Error.
func (s *Severity) UnmarshalText(text []byte) error {
	*s = Error
	if string(text) == "warning" {
		*s = Warning
	}
	return nil
}

// Diagnostic is one thing that is wrong or doubtful in a file. Its texts may
// hold what a stranger wrote: print String, never a field by itself.
type Diagnostic struct {
	Severity Severity `json:"severity"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`   // from 1; 0 where unknown
	Column   int      `json:"column,omitempty"` // from 1; 0 where unknown
	Object   string   `json:"object,omitempty"` // "NetworkPolicy default/web", where known
	Field    string   `json:"field,omitempty"`  // spec.ingress[0].from[1].ipBlock.cidr
	Value    string   `json:"value,omitempty"`  // as written
	Message  string   `json:"message"`          // what is wrong and what would be right
}

// Lengths in runes beyond which a text is cut. Values come from files; a
// message may quote several names.
const (
	maxName    = 300
	maxValue   = 100
	maxMessage = 1000
)

// String gives "file:line:column: field: value: message" on one line, without
// the parts that are not known; the object stands for a missing file. Control
// and other invisible characters are escaped, so that no manifest can write to
// a terminal or forge a log line.
func (d Diagnostic) String() string {
	place := clean(d.File, maxName)
	switch {
	case place == "":
		place = clean(d.Object, maxName)
	case d.Line > 0 && d.Column > 0:
		place += fmt.Sprintf(":%d:%d", d.Line, d.Column)
	case d.Line > 0:
		place += fmt.Sprintf(":%d", d.Line)
	}
	var parts []string
	for _, part := range []string{place, clean(d.Field, maxName), clean(d.Value, maxValue), clean(d.Message, maxMessage)} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// Error makes a Diagnostic an error, to be joined with others.
func (d Diagnostic) Error() string { return d.String() }

// clean escapes what is not printable and cuts after limit runes.
func clean(s string, limit int) string {
	var b strings.Builder
	for n := 0; s != ""; n++ {
		if n == limit {
			return b.String() + "..."
		}
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		s = s[size:]
	}
	return b.String()
}
