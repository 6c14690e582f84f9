// The text that the stand-in pair is made of.
#pragma once

#include <string>
#include <vector>

namespace paceline {

// English prose that is always there, written for this purpose.
std::string BuiltInText();

// The built-in text, then the files that can be read, in order.
std::string ReadCorpus(const std::vector<std::string>& files);

}  // namespace paceline
