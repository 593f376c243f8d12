package report

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// page writes HTML. Its errors are those of the writer below, told by the last
// Flush.
type page struct{ *bufio.Writer }

// markup is HTML that stands in this package. A text that comes from elsewhere is a
// string, which the compiler does not take for it.
type markup string

// put writes markup with a text, escaped, in the place of each {}.
func (p page) put(m markup, texts ...string) {
	rest := string(m)
	for _, t := range texts {
		before, after, _ := strings.Cut(rest, "{}")
		p.WriteString(before)
		escape(p, t)
		rest = after
	}
	p.WriteString(rest)
}

// escape writes a text so that it is one, also within the quotes of an attribute.
// What can't be seen, or changes how the text around it is seen (control characters,
// other directions of writing), is written as \u202e is; bytes that are no UTF-8 as
// \xff is. Lines stay lines.
func escape(w io.StringWriter, s string) {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		text := s[:n]
		switch {
		case r == '&':
			text = "&amp;"
		case r == '<':
			text = "&lt;"
		case r == '>':
			text = "&gt;"
		case r == '"':
			text = "&#34;"
		case r == '\'':
			text = "&#39;"
		case r == '\n':
		case r == utf8.RuneError && n == 1:
			text = fmt.Sprintf(`\x%02x`, s[0])
		case !strconv.IsPrint(r):
			text = fmt.Sprintf(`\u%04x`, r)
		}
		w.WriteString(text)
		s = s[n:]
	}
}

// moment writes a time, or a dash for none.
func (p page) moment(t time.Time) {
	if t.IsZero() {
		p.put("–")
		return
	}
	t = t.UTC()
	p.put(`<time datetime="{}">{}</time>`, t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 UTC"))
}

// name writes "namespace/name" so that it breaks at the slash, if anywhere.
func (p page) name(name string) {
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		p.put(`<span class="ns">{}/</span><wbr>`, namespace)
		name = rest
	}
	p.put(`{}`, name)
}

// list writes the items of a list, separated by commas, by write.
func list[T any](p page, items []T, write func(T)) {
	for i, item := range items {
		if i > 0 {
			p.put(", ")
		}
		write(item)
	}
}

// count gives "1 pod" or "2 pods".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(uint64(n)) + " " + many
}

// number writes a number with its thousands apart: "12,345".
func number(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
