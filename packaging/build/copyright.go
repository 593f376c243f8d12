package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licence is the text that holds for one folder of a module that is linked into the
// daemon, and for those below it.
type licence struct {
	of         string   // github.com/spf13/cobra v1.10.2
	names      []string // SPDX
	copyrights []string
	text       string // without what /usr/share/common-licenses has
}

// licences finds the texts that hold for the packages that are linked into the daemon:
// those in a package's own folder and in those above it in its module. It fails where
// there is none, or one that is not known here: somebody must read it.
func (b *build) licences() ([]licence, error) {
	out, err := b.output("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}|{{.Version}}|{{.Dir}}{{end}}|{{.Dir}}", "./cmd/edgepolicyd")
	if err != nil {
		return nil, err
	}
	goroot, err := b.output("go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	folders := map[string]string{strings.TrimSpace(goroot): "the standard library of Go"}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) < 4 || f[1] == "" { // the standard library, and the daemon itself
			continue
		}
		for dir := f[3]; len(dir) >= len(f[2]); dir = filepath.Dir(dir) {
			folders[dir] = f[0] + strings.TrimPrefix(dir, f[2]) + " " + f[1]
		}
		if text, err := licenceText(f[2]); err != nil {
			return nil, err
		} else if text == "" {
			return nil, fmt.Errorf("%s %s has no file of its licence: ask its authors, or do without it", f[0], f[1])
		}
	}
	var list []licence
	for dir, of := range folders {
		text, err := licenceText(dir)
		if err != nil {
			return nil, err
		}
		if text == "" {
			continue
		}
		l := licence{of: of, names: licenceNames(text), copyrights: copyrights(text)}
		if len(l.names) == 0 {
			return nil, fmt.Errorf("the licence of %s is none that this program knows: read %s", of, dir)
		}
		if l.text = apache.ReplaceAllString(text, ""); len(l.copyrights) == 0 {
			l.copyrights = []string{"the authors of " + of}
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b licence) int { return strings.Compare(a.of, b.of) })
	return list, nil
}

var licenceFile = regexp.MustCompile(`^(LICEN[CS]E|COPYING|NOTICE)([.-].*)?$`)

// licenceText gives the files of a folder that speak of its licence.
func licenceText(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var texts []string
	for _, e := range entries {
		if e.IsDir() || !licenceFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		texts = append(texts, strings.Trim(strings.ReplaceAll(string(data), "\r", ""), "\n"))
	}
	return strings.Join(texts, "\n\n"), nil
}

// apache is the Apache License 2.0, and the appendix on how to use it where that is there.
var apache = regexp.MustCompile(`(?s) *Apache License\s+Version 2.0, January 2004.*?or additional liability\.(\s+END OF TERMS AND CONDITIONS)?(\s+APPENDIX:.*?limitations under the License\.)?`)

// licenceNames gives the licences of a text, as SPDX names them.
func licenceNames(text string) []string {
	words := strings.Join(strings.Fields(text), " ")
	var names []string
	if strings.Contains(words, "Apache License") {
		names = append(names, "Apache-2.0")
	}
	if strings.Contains(words, "Redistribution and use in source and binary forms") {
		if strings.Contains(words, "Neither the name") {
			names = append(names, "BSD-3-Clause")
		} else {
			names = append(names, "BSD-2-Clause")
		}
	}
	if strings.Contains(words, "Permission is hereby granted, free of charge") {
		names = append(names, "Expat")
	}
	return names
}

var copyrightLine = regexp.MustCompile(`(?m)^\W*(?:Portions )?Copyright (?:\([cC]\) |© )?(.*\w.*)$`)

// copyrights gives the holders that a text names.
func copyrights(text string) []string {
	var list []string
	for _, m := range copyrightLine.FindAllStringSubmatch(text, -1) {
		who := strings.TrimSpace(m[1])
		if !strings.ContainsAny(who, "[{") && !strings.HasPrefix(who, "notice") && !strings.HasPrefix(who, "License") && !slices.Contains(list, who) {
			list = append(list, who)
		}
	}
	return list
}

// expression is the licence of the whole binary, for RPM.
func expression(list []licence) string {
	names := []string{"Apache-2.0"} // ours
	for _, l := range list {
		names = append(names, l.names...)
	}
	slices.Sort(names)
	return strings.ReplaceAll(strings.Join(slices.Compact(names), " AND "), "Expat", "MIT") // Debian's name of it
}

const copyrightHead = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: edgepolicyd
Source: https://edgepolicy.io
Comment:
 The program is linked statically. What is not under its own license is named here by
 the Go module, or the folder of it, from which packages are linked in.

Files: *
Copyright: the authors of edgepolicyd
License: Apache-2.0

`

const apacheText = `License: Apache-2.0
 Licensed under the Apache License, Version 2.0 (the "License"); you may not use
 this file except in compliance with the License. You may obtain a copy of the
 License at
 .
    http://www.apache.org/licenses/LICENSE-2.0
 .
 Unless required by applicable law or agreed to in writing, software distributed
 under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR
 CONDITIONS OF ANY KIND, either express or implied. See the License for the
 specific language governing permissions and limitations under the License.
 .
 On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.
`

// copyright writes the file in Debian's machine-readable form. Modules with the same
// text share it.
func copyright(list []licence) string {
	var b strings.Builder
	b.WriteString(copyrightHead)
	for i, l := range list {
		same := func(o licence) bool { return o.text == l.text && slices.Equal(o.names, l.names) }
		if slices.ContainsFunc(list[:i], same) {
			continue
		}
		var paths, modules, holders []string
		for _, o := range list[i:] {
			if same(o) {
				path, _, _ := strings.Cut(o.of, " ")
				if o.of == "the standard library of Go" {
					path = "go"
				}
				paths, modules = append(paths, path+"/*"), append(modules, o.of)
				holders = append(holders, o.copyrights...)
			}
		}
		slices.Sort(holders)
		fmt.Fprintf(&b, "Files: %s\n", strings.Join(paths, "\n "))
		fmt.Fprintf(&b, "Copyright: %s\n", strings.Join(slices.Compact(holders), "\n "))
		fmt.Fprintf(&b, "License: %s\n", strings.Join(l.names, " and "))
		if strings.TrimSpace(l.text) != "" {
			b.WriteString(field(l.text))
		}
		fmt.Fprintf(&b, "Comment: %s\n\n", strings.Join(modules, "\n "))
	}
	b.WriteString(apacheText)
	return b.String()
}

// field writes a text as the lines that continue a field.
func field(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		if line = strings.TrimRight(line, " \t\n"); line == "" {
			line = "."
		}
		b.WriteString(" " + strings.TrimPrefix(line, "\t") + "\n")
	}
	return b.String()
}
