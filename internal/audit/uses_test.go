package audit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestUsesAreDocumented: where the program logs an event, it gives it no field that
// the event is not documented to have.
func TestUsesAreDocumented(t *testing.T) {
	events, keys := declared(t)
	uses := map[string]bool{}
	for _, dir := range []string{"../../cmd", "../../internal"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				for _, event := range named(call, events, file.Name.Name == "audit") {
					uses[event.Name] = true
					for _, key := range named(call, keys, file.Name.Name == "audit") {
						if !slices.Contains(event.Fields, key) {
							t.Errorf("%s: %s is given the field %s, which the table of events does not know of", set.Position(call.Pos()), event.Name, key)
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(uses) < len(Events)/2 {
		t.Errorf("only the uses of %d events were found", len(uses))
	}
}

// declared gives the package's events and keys by the names of their variables.
func declared(t *testing.T) (events map[string]*Event, keys map[string]string) {
	t.Helper()
	byName := map[string]*Event{}
	for _, e := range Events {
		byName[e.Name] = e
	}
	events, keys = map[string]*Event{}, map[string]string{}
	for _, path := range []string{"events.go", "fields.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			// The first string in it: a key's value, or an event's name.
			first := ""
			ast.Inspect(spec.Values[0], func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && first == "" {
					first = strings.Trim(l.Value, `"`)
				}
				return first == ""
			})
			if name := spec.Names[0].Name; strings.HasPrefix(name, "Key") {
				keys[name] = first
			} else if e := byName[first]; e != nil {
				events[name] = e
			}
			return false
		})
	}
	if len(events) != len(Events) || len(keys) != len(Fields) {
		t.Fatalf("%d of %d events and %d of %d keys are declared", len(events), len(Events), len(keys), len(Fields))
	}
	return events, keys
}

// named gives what a call names of this package; within: the call is in it.
func named[T any](call *ast.CallExpr, known map[string]T, within bool) (found []T) {
	ast.Inspect(call, func(n ast.Node) bool {
		var name string
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "audit" {
				name = n.Sel.Name
			}
		case *ast.Ident:
			if within {
				name = n.Name
			}
		}
		if v, ok := known[name]; ok {
			found = append(found, v)
		}
		return true
	})
	return found
}
