package ruleset

import (
	"fmt"
	"regexp"
	"strings"
)

// What two texts of equal tables can differ in: the names that a set has in the
// kernel, declared sizes, and the epoch.
var (
	endings = regexp.MustCompile(`((?:-[0-9a-f]{16}|_v[46]|_ifs))\.[bc]\b`)
	epoch   = regexp.MustCompile(`(== |\| )0x[0-9a-f]{8}`)
)

// CompareText says how one table's text differs from another's, chain by chain
// and set by set: lines that go with "-", lines that come with "+". Equal tables
// give "no difference".
func CompareText(old, fresh string) string {
	a, b := blocks(old), blocks(fresh)
	all := map[string]bool{}
	for name := range a {
		all[name] = true
	}
	for name := range b {
		all[name] = true
	}
	var out strings.Builder
	for _, name := range names(all) {
		gone, added := without(a[name], b[name]), without(b[name], a[name])
		_, was := a[name]
		_, is := b[name]
		mark := " "
		switch {
		case !was:
			mark = "+"
		case !is:
			mark = "-"
		case len(gone)+len(added) == 0:
			continue
		}
		fmt.Fprintf(&out, "%s %s\n", mark, name)
		for _, l := range gone {
			fmt.Fprintf(&out, "-     %s\n", l)
		}
		for _, l := range added {
			fmt.Fprintf(&out, "+     %s\n", l)
		}
	}
	if out.Len() == 0 {
		return "no difference\n"
	}
	return out.String()
}

// blocks takes a table's text apart: the lines of each counter, set, map and
// chain by its heading; of elements one line each.
func blocks(text string) map[string][]string {
	out := map[string][]string{}
	name := ""
	for _, line := range strings.Split(text, "\n") {
		line = endings.ReplaceAllString(strings.TrimSpace(line), "$1")
		switch {
		case line == "" || line == "}" || strings.HasPrefix(line, "table ") || strings.HasPrefix(line, "size "):
		case strings.HasSuffix(line, "{ }"):
			out[strings.TrimSuffix(line, " { }")] = nil
		case strings.HasSuffix(line, " {"):
			name = strings.TrimSuffix(line, " {")
			out[name] = nil
		default:
			if strings.Contains(line, "ct mark") {
				line = epoch.ReplaceAllString(line, "${1}epoch")
			}
			line = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(line, "elements = { "), " }"), ",")
			out[name] = append(out[name], line)
		}
	}
	return out
}

// without gives the lines of a that are not in b. Sets may have many.
func without(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, l := range b {
		in[l] = true
	}
	var out []string
	for _, l := range a {
		if !in[l] {
			out = append(out, l)
		}
	}
	return out
}
