package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// release is one section of CHANGELOG.md.
type release struct {
	version string // as packages spell it, with the revision
	date    time.Time
	changes []string // "Added: ..."
}

var heading = regexp.MustCompile(`^## \[([^]]+)\](?: - (\d{4}-\d\d-\d\d))?$`)

// parseChangelog reads a file in the form of Keep a Changelog, the newest release
// first. What is not released belongs to the version that is packaged, unless that is
// the newest release.
func parseChangelog(text, version string, date time.Time) ([]release, error) {
	var list []release
	kind := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "## ") {
			m := heading.FindStringSubmatch(line)
			if m == nil {
				return nil, fmt.Errorf("%q: it is ## [1.2.0] - 2026-01-31 or ## [Unreleased]", line)
			}
			r := release{version: packageVersion(m[1]), date: date}
			if m[1] == "Unreleased" {
				r.version = version
			} else if d, err := time.Parse(time.DateOnly, m[2]); err == nil {
				r.date = d
			} else {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			list = append(list, r)
			continue
		}
		if len(list) == 0 || strings.TrimSpace(line) == "" {
			continue
		}
		changes := &list[len(list)-1].changes
		if k, ok := strings.CutPrefix(line, "### "); ok {
			kind = k
		} else if item, ok := strings.CutPrefix(line, "- "); ok {
			*changes = append(*changes, kind+": "+item)
		} else if more, ok := strings.CutPrefix(line, "  "); ok && len(*changes) > 0 {
			(*changes)[len(*changes)-1] += " " + strings.TrimSpace(more)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("it has no release")
	}
	if len(list) > 1 && len(list[0].changes) == 0 && list[1].version == version {
		list = list[1:]
	} else if list[0].version != version {
		list = append([]release{{version: version, date: date}}, list...)
	}
	for i := range list {
		if len(list[i].changes) == 0 {
			list[i].changes = []string{"Nothing that a user notices."}
		}
		list[i].version += "-" + revision
	}
	return list, nil
}

// debianChangelog writes deb-changelog(5).
func debianChangelog(list []release) string {
	var b strings.Builder
	for i, r := range list {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s (%s) unstable; urgency=medium\n\n", name, r.version)
		for _, c := range r.changes {
			b.WriteString(strings.Replace(indented(c, "    ", 76), "    ", "  * ", 1))
		}
		fmt.Fprintf(&b, "\n -- %s  %s\n", maintainer, r.date.Format(time.RFC1123Z))
	}
	return b.String()
}

// indented breaks a text into lines of at most width characters.
func indented(text, indent string, width int) string {
	var b strings.Builder
	line := indent
	for _, word := range strings.Fields(text) {
		if line != indent && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	return b.String() + line + "\n"
}

// rpmChangelog writes what nfpm reads: chglog's YAML, of which JSON is a part.
func rpmChangelog(list []release) ([]byte, error) {
	type change struct {
		Note string `json:"note"`
	}
	type entry struct {
		Semver   string    `json:"semver"`
		Date     time.Time `json:"date"`
		Packager string    `json:"packager"`
		Changes  []change  `json:"changes"`
	}
	var entries []entry
	for _, r := range list {
		e := entry{Semver: r.version, Date: r.date, Packager: maintainer}
		for _, c := range r.changes {
			e.Changes = append(e.Changes, change{strings.TrimSuffix(strings.TrimPrefix(indented(c, "  ", 76), "  "), "\n")})
		}
		entries = append(entries, e)
	}
	return json.Marshal(entries)
}
