"""What a page holds, for tests."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "wbr", "br"}


class Page(HTMLParser):
    """Elements with their attributes and texts, and whether all are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text_of = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.text_of.append("")
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.text_of[place] += data

    def texts(self, tag, class_=None):
        wanted = (
            text
            for (name, attributes), text in zip(self.elements, self.text_of, strict=True)
            if name == tag and (class_ is None or class_ in (attributes.get("class") or "").split())
        )
        return list(wanted)

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
