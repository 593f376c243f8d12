package manifest

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// tree is one object in its file, with the place of each of its fields.
type tree struct {
	file   string
	node   *yaml.Node // nil for an object that was not read from text
	prefix string     // where the object stands in a List: "items[3]."
	object string     // "NetworkPolicy default/web", once known
}

// diagnose makes a diagnostic about a field of the object. A field that is not
// there is placed at the nearest one around it.
func (t tree) diagnose(s Severity, path *field.Path, value, message string) Diagnostic {
	d := Diagnostic{Severity: s, File: t.file, Object: t.object, Value: value, Message: message}
	if path != nil {
		d.Field = t.prefix + path.String()
	} else {
		d.Field = strings.TrimSuffix(t.prefix, ".")
	}
	if t.node != nil {
		n := t.node
		if path != nil {
			n = locate(n, path.String())
		}
		d.Line, d.Column = n.Line, n.Column
	}
	return d
}

// locate finds the node at a path such as spec.ingress[0].from, or the last
// node on the way there. A bracket on a mapping holds a key, dots and all.
func locate(n *yaml.Node, path string) *yaml.Node {
	for path != "" {
		n = deref(n)
		var next *yaml.Node
		if n.Kind == yaml.SequenceNode {
			index, rest, _ := strings.Cut(strings.TrimPrefix(path, "["), "]")
			if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.Content) {
				next = n.Content[i]
			}
			path = rest
		} else if strings.HasPrefix(path, "[") { // a label, always the last step
			next, path = child(n, strings.TrimSuffix(path[1:], "]")), ""
		} else {
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			next, path = child(n, path[:end]), path[end:]
		}
		if next == nil {
			return n
		}
		n, path = next, strings.TrimPrefix(path, ".")
	}
	return n
}

// child gives the value of a mapping's key, nil when there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	n = deref(n)
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// deref follows an alias (*name) to what it stands for.
func deref(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// maxFindings is how many errors, and how many warnings, are told of one object.
const maxFindings = 50

// log collects the diagnostics of one object.
type log struct {
	tree
	found []Diagnostic
	count [2]int // by Severity, those not told included
}

func (l *log) add(d Diagnostic) {
	d.Field, d.Value, d.Message = cut(d.Field), cut(d.Value), cut(d.Message)
	if l.count[d.Severity]++; l.count[d.Severity] <= maxFindings {
		l.found = append(l.found, d)
	}
}

// cut keeps a file's megabytes out of what is told of it; String cuts further.
func cut(s string) string {
	if len(s) > maxMessage {
		return strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

func (l *log) valid() bool { return l.count[Error] == 0 }

func (l *log) fail(path *field.Path, value, message string) {
	l.add(l.diagnose(Error, path, value, message))
}

func (l *log) warn(path *field.Path, value, message string) {
	l.add(l.diagnose(Warning, path, value, message))
}

// failAt is fail at a node that has no path of its own, such as a key.
func (l *log) failAt(n *yaml.Node, path *field.Path, value, message string) {
	d := l.diagnose(Error, path, value, message)
	d.Line, d.Column = n.Line, n.Column
	l.add(d)
}
