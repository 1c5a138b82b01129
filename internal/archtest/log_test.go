package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEveryLogEventIsDocumented holds the messages in the code against the pages of docs, both ways: an operator who greps
// for a line finds what it means.
func TestEveryLogEventIsDocumented(t *testing.T) {
	logged := loggedEvents(t)
	documented := documentedEvents(t)
	for event, where := range logged {
		if !slices.Contains(documented, event) {
			t.Errorf("%s: the event %q is on no page of docs", where, event)
		}
	}
	for _, event := range documented {
		if _, ok := logged[event]; !ok {
			t.Errorf("docs: nothing logs %q", event)
		}
	}
}

// loggedEvents finds the constant messages given to a *slog.Logger, and where.
func loggedEvents(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	packages := map[string]*events{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "testkit", "docs"}, d.Name())) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		p := packages[filepath.Dir(file)]
		if p == nil {
			p = &events{fset: token.NewFileSet()}
			packages[filepath.Dir(file)] = p
		}
		f, err := parser.ParseFile(p.fset, file, nil, parser.SkipObjectResolution)
		p.files = append(p.files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, p := range packages {
		p.find(t, all)
	}
	if len(all) == 0 {
		t.Fatal("no event found: the test looks in the wrong place")
	}
	return all
}

// events are those of one package.
type events struct {
	fset  *token.FileSet
	files []*ast.File
	// helpers are functions that log a message which they are given: the place of that parameter.
	helpers map[string]int
}

// find adds the package's events: first those of calls to a logger, then those of calls to a helper.
func (p *events) find(t *testing.T, all map[string]string) {
	p.helpers = map[string]int{}
	p.calls(func(fn *ast.FuncDecl, call *ast.CallExpr) {
		if arg := message(call); arg != nil {
			p.add(t, all, fn, call, arg)
		}
	})
	p.calls(func(fn *ast.FuncDecl, call *ast.CallExpr) {
		if i, ok := p.helpers[callee(call)]; ok && i < len(call.Args) {
			p.add(t, all, fn, call, call.Args[i])
		}
	})
}

// calls goes through every call of every function.
func (p *events) calls(visit func(*ast.FuncDecl, *ast.CallExpr)) {
	for _, f := range p.files {
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					visit(fn, call)
				}
				return true
			})
		}
	}
}

// add notes the messages that arg can be.
func (p *events) add(t *testing.T, all map[string]string, fn *ast.FuncDecl, call *ast.CallExpr, arg ast.Expr) {
	where := p.fset.Position(call.Pos()).String()
	if i, ok := parameter(fn, arg); ok {
		p.helpers[fn.Name.Name] = i
		return
	}
	texts := constants(fn, arg)
	if len(texts) == 0 {
		t.Errorf("%s: the message is not a constant of this function", where)
	}
	for _, text := range texts {
		all[text] = where
	}
}

// parameter tells which parameter of fn an expression is.
func parameter(fn *ast.FuncDecl, x ast.Expr) (place int, ok bool) {
	id, ok := x.(*ast.Ident)
	if !ok {
		return 0, false
	}
	for _, field := range fn.Type.Params.List {
		for _, name := range field.Names {
			if name.Name == id.Name {
				return place, true
			}
			place++
		}
	}
	return 0, false
}

// callee is the name of what is called.
func callee(call *ast.CallExpr) string {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return fun.Sel.Name
	}
	return ""
}

// message is the argument of a call that is a log message, nil if the call logs nothing.
func message(call *ast.CallExpr) ast.Expr {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !isLogger(sel.X) {
		return nil
	}
	switch sel.Sel.Name {
	case "Debug", "Info", "Warn", "Error":
		return call.Args[0]
	case "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
		return call.Args[1]
	case "Log", "LogAttrs":
		return call.Args[2]
	}
	return nil
}

// isLogger goes by the name: log, x.log, deps.Log.
func isLogger(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return strings.EqualFold(x.Name, "log")
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log")
	}
	return false
}

// constants are the strings that an expression can be: a literal, or the literals that a variable is given.
func constants(fn *ast.FuncDecl, x ast.Expr) []string {
	if lit, ok := x.(*ast.BasicLit); ok {
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			return nil
		}
		return []string{text}
	}
	id, ok := x.(*ast.Ident)
	if !ok {
		return nil
	}
	var texts []string
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		assign, ok := n.(*ast.AssignStmt)
		if !ok || len(assign.Lhs) != len(assign.Rhs) {
			return true
		}
		for i, l := range assign.Lhs {
			if name, ok := l.(*ast.Ident); ok && name.Name == id.Name {
				if lit, ok := assign.Rhs[i].(*ast.BasicLit); ok {
					text, err := strconv.Unquote(lit.Value)
					if err == nil {
						texts = append(texts, text)
					}
				}
			}
		}
		return true
	})
	return texts
}

var eventRow = regexp.MustCompile("^\\| `([^`]+)` \\|")

// documentedEvents reads the first column of each table whose heading is "event", on every page.
func documentedEvents(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		inTable := false
		for line := range strings.Lines(string(b)) {
			inTable = strings.HasPrefix(line, "| event |") || inTable && strings.HasPrefix(line, "|")
			if m := eventRow.FindStringSubmatch(line); inTable && m != nil {
				events = append(events, m[1])
			}
		}
	}
	return events
}
